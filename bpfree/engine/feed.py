"""Training rows for the lowest block that still learns: from the data, or from cached features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from bpfree import _seeds
from bpfree._feature_store import Growing, Store, rows_at
from bpfree._rows import Rows
from bpfree.core.cascade import Cascade
from bpfree.encodings.base import Encoding, View
from bpfree.engine.base_feed import BaseFeed
from bpfree.engine.step import forward
from bpfree.nn import counted_modules


class Data(Protocol):
    """What a schedule asks of a data set; `bpfree.data.TensorData` is one."""

    @property
    def y(self) -> Tensor:
        """Labels, ``[N]``."""

    @property
    def augmented(self) -> bool:
        """Whether a sample looks different each time."""

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The samples ``[B, ...]`` and labels ``[B]`` at ``indices``, augmented if a generator is given."""


class Feed(BaseFeed):
    """Feeds the block at ``height``, whose predecessors are frozen.

    While neither the data nor the encoding changes from one epoch to the next, what the frozen blocks (and
    the fed block's front) answer is computed once per sample and kept, in batches of the size that training
    uses: so it has the very bits that computing it anew would give. Where the encoding changes among a few
    looks, every look of every sample is kept. A front whose calls are counted is asked for no other row: no
    batch is filled up for the sake of equal bits, which a device would not give.

    Args:
        cascade: The blocks and the encoding.
        data: The training data.
        seed: The run's seed.
        batch_size: Samples per training step.
        cache: Whether to keep features where they are constant.
        store: Where they are kept; by default in memory.
    """

    def __init__(
        self,
        cascade: Cascade,
        data: Data,
        seed: int,
        batch_size: int,
        cache: bool,
        store: Store | None = None,
    ) -> None:
        self.cascade, self.data, self.seed, self.batch_size = cascade, data, seed, batch_size
        self.device, self.store = data.y.device, store or Store()
        self._constant = not data.augmented and not cascade.encoding.redraw
        self._looks = cascade.encoding.redraw and type(cascade.encoding).looks is not Encoding.looks
        self.caches = cache and not data.augmented and (self._looks or self._constant)
        self.height = 0
        #: What is kept, ``[views or looks, N, ...]``, and the epoch of the stage in which it was made.
        self.features: Tensor | None = None
        self.made_in = 0
        self._targets: Tensor | None = None
        self._fixed: Tensor | None = None
        self._outputs: dict[View, list[Tensor]] = {}
        if not cascade.encoding.redraw:
            self._fixed = cascade.encoding.draw(data.y, self._generator("negatives"))

    @property
    def front_output(self) -> bool:
        """Whether `rows` are what the fed block's front has answered already."""
        return self.features is not None

    @property
    def measured(self) -> bool:
        """Whether what is kept here was asked of a front that counts, so that asking again is another run."""
        return self.front_output and self._asks(self.height + 1)

    def freeze_below(self, height: int) -> None:
        """Freeze the blocks below ``height``; their features are computed here if they can be kept."""
        # Not before training begins: a run that is taken up has its weights only then.
        if self.caches and self.features is None and self.cascade.units[0].front is not None:
            self._keep()
        while self.height < height:
            self.height += 1
            if self.caches and self.height < len(self.cascade.units):
                self._keep()

    def restore(self, height: int, features: Tensor, made_in: int) -> None:
        """Take up features of the block at ``height`` that an earlier part of the run has kept."""
        kept = self._growing()
        kept.add(features)
        self.height, self.features, self.made_in = height, kept.whole, made_in
        if not self._looks:
            self._targets = self._all_targets()

    def renew(self, epoch: int) -> None:
        """Ask for what is kept once more, from the data on: a device may have drifted since."""
        self.features, self.made_in = None, epoch
        self._keep()

    def batches(self, n_samples: int, drop_last: bool = False) -> Iterator[Rows]:
        """The first ``n_samples`` training samples once, as rows for the first block.

        Args:
            n_samples: How many.
            drop_last: Whether a last, shorter batch is left out; the only one never is.
        """
        n_samples = min(n_samples, len(self.data.y))
        if drop_last and n_samples > self.batch_size:
            n_samples -= n_samples % self.batch_size
        for indices in torch.arange(n_samples, device=self.device).split(self.batch_size):
            yield self._encoded(indices)[0]

    def samples(self, indices: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Samples ``[B, ...]`` and labels ``[B]`` of a training step, before any encoding."""
        generator = self._generator("augment", epoch, step) if self.data.augmented else None
        return self.data.batch(indices, generator)

    def rows(
        self, indices: Tensor, epoch: int, step: int, scores: Tensor | None = None
    ) -> tuple[Rows, Tensor]:
        """Input rows of the fed block and their targets, ``[V * B, ...]`` and ``[V * B]``.

        Args:
            indices: Samples of the step, ``[B]``.
            epoch: Number of the epoch, for the random streams.
            step: Number of the step in the epoch.
            scores: Class scores ``[B, C]``, if the encoding draws hard negatives.
        """
        if self.features is not None and self._looks:
            _, y = self.samples(indices, epoch, step)
            labels, target = self.cascade.encoding.chosen(y, self._drawn(y, epoch, step, scores))
            return rows_at(self.features, indices, labels).flatten(0, 1), target
        if self.features is not None and self._targets is not None:
            return rows_at(self.features, indices).flatten(0, 1), self._targets[:, indices].flatten()
        if self.height == 0 or not self._constant or self._asks(self.height):
            rows, target = self._encoded(indices, epoch, step, scores)
            return forward(self.cascade.units[: self.height], rows), target
        rows, target = self._encoded(self._filled(indices))
        rows = forward(self.cascade.units[: self.height], rows)
        assert isinstance(rows, Tensor)
        return self._first(rows, len(indices)), self._first(target, len(indices))

    def outputs(self, x: Tensor, indices: Tensor, view: View) -> list[Tensor]:
        """Outputs of all blocks for samples ``x [B, ...]`` in ``view``, without a graph."""
        if view not in self._outputs:
            with torch.no_grad():
                return self.cascade.outputs(self.cascade.encoding.view(x, view))
        return [rows_at(kept, indices)[0] for kept in self._outputs[view]]

    def keep_outputs(self, view: View) -> None:
        """Keep the outputs of all blocks, which are frozen, for the training samples in ``view``."""
        if not self.caches or view in self._outputs:
            return
        chunks = torch.arange(len(self.data.y), device=self.device).split(self.batch_size)
        kept: list[Growing] = []
        for indices in chunks:
            outputs = self.outputs(self.samples(indices, 0, 0)[0], indices, view)
            kept = kept or [self._growing() for _ in outputs]
            for growing, output in zip(kept, outputs, strict=True):
                growing.add(output.unsqueeze(0))
        self._outputs[view] = [growing.whole for growing in kept]

    def _encoded(
        self, indices: Tensor, epoch: int = 0, step: int = 0, scores: Tensor | None = None
    ) -> tuple[Rows, Tensor]:
        x, y = self.samples(indices, epoch, step)
        encoding = self.cascade.encoding
        if encoding.redraw:
            return encoding.encode(x, y, self._drawn(y, epoch, step, scores))
        return encoding.encode(x, y, None if self._fixed is None else self._fixed[indices])

    def _drawn(self, y: Tensor, epoch: int, step: int, scores: Tensor | None) -> Tensor | None:
        return self.cascade.encoding.draw(y, self._generator("negatives", epoch, step), scores)

    @torch.no_grad()
    def _keep(self) -> None:
        """Replace the kept features by what the next block (and the front behind it) makes of them."""
        block, below = self.cascade.units[self.height], self.cascade.units[: self.height]
        kept = self._growing()
        for indices in torch.arange(len(self.data.y), device=self.device).split(self.batch_size):
            asked = indices if self._asks(self.height + 1) else self._filled(indices)
            if self.features is not None:
                rows: Rows = below[-1].body_output(rows_at(self.features, asked).flatten(0, 1))
            else:
                rows = forward(below, self._shown(asked))
            answer = block.run_front(rows)
            assert isinstance(answer, Tensor)
            kept.add(answer.unflatten(0, (-1, len(asked)))[:, : len(indices)])
        self.features = kept.whole
        if not self._looks and self._targets is None:
            self._targets = self._all_targets()

    def _shown(self, indices: Tensor) -> Rows:
        """All rows that samples become, view by view, or look by look where they change."""
        if not self._looks:
            return self._encoded(indices)[0]
        return self.cascade.encoding.looks(self.data.batch(indices)[0])

    def _all_targets(self) -> Tensor:
        chunks = torch.arange(len(self.data.y), device=self.device).split(self.batch_size)
        views = self.cascade.encoding.views
        return torch.cat([self._encoded(i)[1].unflatten(0, (views, -1)) for i in chunks], 1)

    def _asks(self, height: int) -> bool:
        """Whether a front of the first ``height`` blocks counts its calls."""
        return any(counted_modules(block) for block in self.cascade.units[:height])

    def _filled(self, indices: Tensor) -> Tensor:
        """``indices``, filled up to a whole batch: the answer to a shorter one has other bits."""
        whole = min(self.batch_size, len(self.data.y))
        return torch.cat([indices, indices[:1].expand(max(0, whole - len(indices)))])

    def _first(self, rows: Tensor, n: int) -> Tensor:
        """The rows of the first ``n`` samples of a filled batch."""
        by_view: Tensor = rows.unflatten(0, (self.cascade.encoding.views, -1))
        return by_view[:, :n].flatten(0, 1)

    def _growing(self) -> Growing:
        return Growing(self.store, len(self.data.y))

    def _generator(self, *parts: int | str) -> torch.Generator:
        return _seeds.generator(self.device, self.seed, *parts)
