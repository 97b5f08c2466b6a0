"""What the readouts say of a data set, with the frozen part of a greedy cascade computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bpfree._errors import Diverged
from bpfree._feature_store import Growing, Store, rows_at
from bpfree._rows import Rows
from bpfree.core.cascade import Cascade
from bpfree.core.readouts import Readout
from bpfree.encodings.base import View
from bpfree.engine.feed import Data
from bpfree.metrics import Metric
from bpfree.nn import counting_passes

#: Rows that are computed at once: samples, times the labels that each is shown under.
BATCH = 1024

#: By ear, what readouts heard of one output after another; None of losses that say nothing.
Heard = dict[str, list[Tensor | None]]


@dataclass
class Kept:
    """What is kept of the frozen blocks, for one view of all samples.

    Attributes:
        height: Number of blocks below.
        rows: What the block at ``height`` (its body, if a front has answered) is fed, ``[views, N, ...]``;
            None: the samples themselves.
        heard: What readouts heard of the outputs below, ``[views, N, ...]`` each.
    """

    height: int = 0
    rows: Tensor | None = None
    heard: Heard = field(default_factory=dict)


class Evaluator:
    """Class scores of all samples of a data set.

    Args:
        cascade: The blocks and readouts.
        data: The samples; never augmented here.
        cache: Whether `freeze_below` keeps what the frozen blocks answered.
        store: Where it is kept; by default in memory.
    """

    def __init__(self, cascade: Cascade, data: Data, cache: bool = False, store: Store | None = None) -> None:
        self.cascade, self.data, self.cache, self.store = cascade, data, cache, store or Store()
        self.n_samples = len(data.y)
        self._kept: dict[View, Kept] = {}

    def first(self, n_samples: int) -> Evaluator:
        """An evaluator of the first ``n_samples`` alone."""
        few = Evaluator(self.cascade, self.data)
        few.n_samples = min(n_samples, self.n_samples)
        return few

    @torch.no_grad()
    def freeze_below(self, height: int, readouts: Sequence[str]) -> None:
        """Freeze the blocks below ``height``, for the views of ``readouts``; other views are forgotten.

        Of a frozen block that is kept which readouts hear of it; of the highest, its output as well, or what
        the next block's front answers to it.
        """
        if not self.cache:
            return
        views = self._by_view(readouts)
        self._kept = {view: kept for view, kept in self._kept.items() if view in views}
        for view, listening in views.items():
            ears = {readout.input_kind for readout in listening}
            if ears != self._of(view).heard.keys():
                self._kept[view] = Kept(heard={ear: [] for ear in ears})
            while self._of(view).height < height or self._unsensed(self._of(view)):
                self._raise(view, listening)

    @torch.no_grad()
    def outputs(self, number: int, n_blocks: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Output ``number`` of the first ``n_blocks`` blocks for the samples as they are, and the labels.

        It must be of a block that is not frozen.
        """
        self.cascade.eval()
        below = self._n_losses(self._of("plain").height)
        for indices in self._batches("plain"):
            yield self._outputs("plain", indices, n_blocks)[number - below], self.data.y[indices]

    @torch.no_grad()
    def scores(self, readouts: Sequence[str], n_blocks: int | None = None) -> dict[str, Tensor]:
        """Scores ``[N, C]`` by each readout, and of each block as ``"block 1"`` and so on.

        Args:
            readouts: Names; the blocks are told apart by the first of them that can.
            n_blocks: How many blocks the readouts listen to; all by default.
        """
        training = self.cascade.training
        self.cascade.eval()
        found: dict[str, list[Tensor]] = {}
        named = {name: self.cascade.readout(name) for name in readouts}
        teller = next((readout for readout in named.values() if readout.scores_blocks), None)
        losses = self.cascade.losses[: self._n_losses(n_blocks)]
        for view, listening in self._by_view(readouts).items():
            for indices in self._batches(view):
                heard = self._heard(view, indices, listening, n_blocks)
                for name, readout in named.items():
                    if readout.view == view:
                        found.setdefault(name, []).append(readout.predict(heard[readout.input_kind], losses))
                if teller is not None and teller.view == view:
                    for k, scores in enumerate(teller.block_scores(heard[teller.input_kind])):
                        if scores is not None:
                            found.setdefault(f"block {k + 1}", []).append(scores)
        self.cascade.train(training)
        return {name: torch.cat(parts) for name, parts in found.items()}

    def evaluate(
        self, metric: Metric, readouts: Sequence[str], n_blocks: int | None = None
    ) -> dict[str, float]:
        """The metric of each readout, and of each block alone."""
        scores = self.scores(readouts, n_blocks)
        for name, found in scores.items():
            if not found.isfinite().all():
                raise Diverged(
                    f"the scores of {name} are not finite: nor are the samples, or the weights by now"
                )
        targets = self.cascade.encoding.answers(self.data)[: self.n_samples]
        return {name: metric(s, targets) for name, s in scores.items()}

    # ---- one batch -------------------------------------------------------------------------------------

    def _batches(self, view: View) -> Iterator[Tensor]:
        samples = max(1, BATCH // self.cascade.encoding.copies(view))
        yield from torch.arange(self.n_samples, device=self.data.y.device).split(samples)

    def _shown(self, view: View, indices: Tensor) -> Rows:
        return self.cascade.encoding.view(self.data.batch(indices)[0], view)

    def _outputs(self, view: View, indices: Tensor, n_blocks: int | None) -> list[Tensor]:
        """Outputs of the blocks that are not frozen, up to ``n_blocks``, ``[views * B, ...]`` each."""
        kept, found = self._of(view), list[Tensor]()
        rows: Rows
        rows = self._shown(view, indices) if kept.rows is None else rows_at(kept.rows, indices).flatten(0, 1)
        with counting_passes(self.cascade, "eval"):
            for k, block in enumerate(self.cascade.units[kept.height : n_blocks]):
                sensed = k == 0 and kept.rows is not None and block.front is not None
                found += [block.body_output(rows)] if sensed else block.outputs(rows)
                rows = found[-1]
        return found

    def _heard(
        self, view: View, indices: Tensor, listening: Sequence[Readout], n_blocks: int | None
    ) -> Heard:
        """What readouts hear of the first blocks for one batch of samples, ``[views * B, ...]`` each."""
        kept = self._of(view)
        new = self._hear(listening, self._outputs(view, indices, n_blocks), kept.height)
        return {
            ear: [None if h is None else rows_at(h, indices).flatten(0, 1) for h in kept.heard.get(ear, [])]
            + parts
            for ear, parts in new.items()
        }

    def _hear(self, listening: Sequence[Readout], outputs: Sequence[Tensor], height: int) -> Heard:
        """What readouts hear of the outputs of the blocks from ``height`` on."""
        losses = self.cascade.losses[self._n_losses(height) :][: len(outputs)]
        ears = {readout.input_kind: readout for readout in listening}
        return {
            ear: [readout.collect(o, loss) for o, loss in zip(outputs, losses, strict=True)]
            for ear, readout in ears.items()
        }

    def _n_losses(self, n_blocks: int | None) -> int:
        return sum(len(block.losses) for block in self.cascade.units[:n_blocks])

    def _by_view(self, readouts: Sequence[str]) -> dict[View, list[Readout]]:
        found: dict[View, list[Readout]] = {}
        for readout in map(self.cascade.readout, readouts):
            found.setdefault(readout.view, []).append(readout)
        return found

    # ---- what is kept ----------------------------------------------------------------------------------

    def _of(self, view: View) -> Kept:
        return self._kept.get(view, Kept())

    def _unsensed(self, kept: Kept) -> bool:
        """Whether the lowest front has not been asked yet; those above it are asked on the way."""
        return kept.height == 0 and kept.rows is None and self.cascade.units[0].front is not None

    def _raise(self, view: View, listening: Sequence[Readout]) -> None:
        """Take one more block into what is kept; or ask the lowest front, where nothing is kept yet."""
        kept, units = self._kept[view], self.cascade.units
        lowest = self._unsensed(kept)
        height = kept.height + (not lowest)
        rows, heard = self._growing(), dict[str, list[Growing | None]]()
        for indices in self._batches(view):
            outputs = [] if lowest else self._outputs(view, indices, height)
            for ear, parts in self._hear(listening, outputs, kept.height).items():
                growing = heard.setdefault(ear, [None if h is None else self._growing() for h in parts])
                for own, part in zip(growing, parts, strict=True):
                    if own is not None and part is not None:
                        own.add(part.unflatten(0, (-1, len(indices))))
            if height < len(units):
                answer = units[height].run_front(outputs[-1] if outputs else self._shown(view, indices))
                assert isinstance(answer, Tensor)
                rows.add(answer.unflatten(0, (-1, len(indices))))
        kept.height, kept.rows = height, rows.whole if height < len(units) else None
        for ear, own_heard in heard.items():
            kept.heard[ear] += [None if own is None else own.whole for own in own_heard]

    def _growing(self) -> Growing:
        return Growing(self.store, self.n_samples)


def _rows(kept: Tensor | None, indices: Tensor) -> Tensor | None:
    return None if kept is None else rows_at(kept, indices).flatten(0, 1)
