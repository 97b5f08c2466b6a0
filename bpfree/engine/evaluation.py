"""Class scores of a data set by the readouts. Outputs of frozen blocks can be cached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bpfree._errors import Diverged
from bpfree._feature_store import RowBuffer, Store, select_samples
from bpfree._rows import Rows
from bpfree.core.cascade import Cascade
from bpfree.core.readouts import Readout
from bpfree.encodings.base import View
from bpfree.engine.feed import Data
from bpfree.metrics import Metric
from bpfree.nn import counting_passes

#: Rows that are computed at once: samples times rows per sample.
BATCH = 1024

#: By input kind of the readouts: the results of `Readout.collect`, one per local loss, bottom first.
Collected = dict[str, list[Tensor | None]]


@dataclass
class CachedView:
    """Cached results of the frozen blocks, for one view of all samples.

    Attributes:
        height: Number of frozen blocks.
        rows: Input of the block at ``height``, or of its body if it has a front, ``[views, N, ...]``; None:
            the input is encoded from the samples.
        collected: Collected tensors of the frozen blocks, ``[views, N, ...]`` each.
    """

    height: int = 0
    rows: Tensor | None = None
    collected: Collected = field(default_factory=dict)


class Evaluator:
    """Computes class scores of all samples of a data set.

    Args:
        cascade: The blocks and readouts.
        data: The samples, which are not augmented.
        cache: Whether `freeze_below` caches the results of frozen blocks.
        store: Where they are cached; by default in memory.
    """

    def __init__(self, cascade: Cascade, data: Data, cache: bool = False, store: Store | None = None) -> None:
        self.cascade, self.data, self.cache, self.store = cascade, data, cache, store or Store()
        self.n_samples = len(data.y)
        self._cached: dict[View, CachedView] = {}

    def first(self, n_samples: int) -> Evaluator:
        """Return an evaluator of the first ``n_samples`` samples."""
        evaluator = Evaluator(self.cascade, self.data)
        evaluator.n_samples = min(n_samples, self.n_samples)
        return evaluator

    @torch.no_grad()
    def freeze_below(self, height: int, readouts: Sequence[str]) -> None:
        """Freeze the blocks below ``height``, and cache their results for the views of ``readouts``.

        The tensors that the readouts collect are cached for each frozen block; the output, or the output of
        the next block's front, for the highest one only. The cache of other views is deleted.
        """
        if not self.cache:
            return
        by_view = self._by_view(readouts)
        self._cached = {view: cached for view, cached in self._cached.items() if view in by_view}
        for view, view_readouts in by_view.items():
            kinds = {readout.input_kind for readout in view_readouts}
            if kinds != self._cached_view(view).collected.keys():
                self._cached[view] = CachedView(collected={kind: [] for kind in kinds})
            while self._cached_view(view).height < height or self._needs_front(self._cached_view(view)):
                self._cache_next(view, view_readouts)

    @torch.no_grad()
    def outputs(self, number: int, n_blocks: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield output ``number`` of the first ``n_blocks`` blocks in the plain view, and the labels.

        The output must be of a block that is not frozen.
        """
        self.cascade.eval()
        below = self._n_losses(self._cached_view("plain").height)
        for indices in self._batches("plain"):
            yield self._outputs("plain", indices, n_blocks)[number - below], self.data.y[indices]

    @torch.no_grad()
    def scores(self, readouts: Sequence[str], n_blocks: int | None = None) -> dict[str, Tensor]:
        """Compute scores ``[N, C]`` by each readout, and of each block as ``"block 1"`` and so on.

        Args:
            readouts: Names. The scores of each block are those of the first readout that has such scores.
            n_blocks: Number of blocks that the readouts use; all by default.
        """
        training = self.cascade.training
        self.cascade.eval()
        parts: dict[str, list[Tensor]] = {}
        named = {name: self.cascade.readout(name) for name in readouts}
        per_block = next((readout for readout in named.values() if readout.scores_blocks), None)
        losses = self.cascade.losses[: self._n_losses(n_blocks)]
        for view, view_readouts in self._by_view(readouts).items():
            for indices in self._batches(view):
                collected = self._collected(view, indices, view_readouts, n_blocks)
                for name, readout in named.items():
                    if readout.view == view:
                        scores = readout.predict(collected[readout.input_kind], losses)
                        parts.setdefault(name, []).append(scores)
                if per_block is not None and per_block.view == view:
                    for k, block_scores in enumerate(per_block.block_scores(collected[per_block.input_kind])):
                        if block_scores is not None:
                            parts.setdefault(f"block {k + 1}", []).append(block_scores)
        self.cascade.train(training)
        return {name: torch.cat(batches) for name, batches in parts.items()}

    def evaluate(
        self, metric: Metric, readouts: Sequence[str], n_blocks: int | None = None
    ) -> dict[str, float]:
        """Compute the metric of each readout, and of each block.

        Raises:
            Diverged: If scores are not finite.
        """
        scores = self.scores(readouts, n_blocks)
        for name, values in scores.items():
            if not values.isfinite().all():
                raise Diverged(
                    f"the scores of {name} are not finite: the samples or the weights have NaN or infinite "
                    "values; check the data, or use a smaller lr"
                )
        targets = self.cascade.encoding.metric_targets(self.data)[: self.n_samples]
        return {name: metric(values, targets) for name, values in scores.items()}

    # ---- one batch -------------------------------------------------------------------------------------

    def _batches(self, view: View) -> Iterator[Tensor]:
        samples = max(1, BATCH // self.cascade.encoding.copies(view))
        yield from torch.arange(self.n_samples, device=self.data.y.device).split(samples)

    def _encoded(self, view: View, indices: Tensor) -> Rows:
        return self.cascade.encoding.view(self.data.batch(indices)[0], view)

    def _outputs(self, view: View, indices: Tensor, n_blocks: int | None) -> list[Tensor]:
        """Outputs of the blocks that are not frozen, up to ``n_blocks``, ``[views * B, ...]`` each."""
        cached, outputs = self._cached_view(view), list[Tensor]()
        rows: Rows
        if cached.rows is None:
            rows = self._encoded(view, indices)
        else:
            rows = select_samples(cached.rows, indices).flatten(0, 1)
        with counting_passes(self.cascade, "eval"):
            for k, block in enumerate(self.cascade.units[cached.height : n_blocks]):
                front_done = k == 0 and cached.rows is not None and block.front is not None
                outputs += [block.body_output(rows)] if front_done else block.outputs(rows)
                rows = outputs[-1]
        return outputs

    def _collected(
        self, view: View, indices: Tensor, readouts: Sequence[Readout], n_blocks: int | None
    ) -> Collected:
        """Collected tensors of the first ``n_blocks`` blocks for a batch, ``[views * B, ...]`` each."""
        cached = self._cached_view(view)
        computed = self._collect(readouts, self._outputs(view, indices, n_blocks), cached.height)
        below: Collected = {
            kind: [None if t is None else select_samples(t, indices).flatten(0, 1) for t in tensors]
            for kind, tensors in cached.collected.items()
        }
        return {kind: below.get(kind, []) + tensors for kind, tensors in computed.items()}

    def _collect(self, readouts: Sequence[Readout], outputs: Sequence[Tensor], height: int) -> Collected:
        """Collect what the readouts need of ``outputs``, which are those of the blocks from ``height`` on."""
        losses = self.cascade.losses[self._n_losses(height) :][: len(outputs)]
        by_kind = {readout.input_kind: readout for readout in readouts}
        return {
            kind: [readout.collect(o, loss) for o, loss in zip(outputs, losses, strict=True)]
            for kind, readout in by_kind.items()
        }

    def _n_losses(self, n_blocks: int | None) -> int:
        return sum(len(block.losses) for block in self.cascade.units[:n_blocks])

    def _by_view(self, readouts: Sequence[str]) -> dict[View, list[Readout]]:
        by_view: dict[View, list[Readout]] = {}
        for readout in map(self.cascade.readout, readouts):
            by_view.setdefault(readout.view, []).append(readout)
        return by_view

    # ---- the cache -------------------------------------------------------------------------------------

    def _cached_view(self, view: View) -> CachedView:
        return self._cached.get(view, CachedView())

    def _needs_front(self, cached: CachedView) -> bool:
        """Whether the lowest block has a front whose output is not cached."""
        return cached.height == 0 and cached.rows is None and self.cascade.units[0].front is not None

    def _cache_next(self, view: View, readouts: Sequence[Readout]) -> None:
        """Cache the results of the next block, or the output of the lowest front if it is not cached."""
        cached, units = self._cached[view], self.cascade.units
        front_only = self._needs_front(cached)
        height = cached.height + (not front_only)
        rows, collected = self._buffer(), dict[str, list[RowBuffer | None]]()
        for indices in self._batches(view):
            outputs = [] if front_only else self._outputs(view, indices, height)
            for kind, tensors in self._collect(readouts, outputs, cached.height).items():
                buffers = collected.setdefault(kind, [None if t is None else self._buffer() for t in tensors])
                for buffer, tensor in zip(buffers, tensors, strict=True):
                    if buffer is not None and tensor is not None:
                        buffer.append(tensor.unflatten(0, (-1, len(indices))))
            if height < len(units):
                front_output = units[height].run_front(
                    outputs[-1] if outputs else self._encoded(view, indices)
                )
                assert isinstance(front_output, Tensor)
                rows.append(front_output.unflatten(0, (-1, len(indices))))
        cached.height, cached.rows = height, rows.tensor if height < len(units) else None
        for kind, buffers in collected.items():
            cached.collected[kind] += [None if buffer is None else buffer.tensor for buffer in buffers]

    def _buffer(self) -> RowBuffer:
        return RowBuffer(self.store, self.n_samples)
