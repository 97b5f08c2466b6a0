"""Training rows for the lowest block that still learns: from the data, or from cached features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from bpfree import _seeds
from bpfree.cascade import Cascade, Rows
from bpfree.encodings import View
from bpfree.schedules.step import ascend


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


class Feed:
    """Feeds the block at ``height``, whose predecessors are frozen.

    While neither the data nor the encoding changes from one epoch to the next, what the frozen blocks (and
    the fed block's front) answer is computed once per sample and kept, in batches of the size that training
    uses: so it has the very bits that computing it anew would give.

    Args:
        cascade: The blocks and the encoding.
        data: The training data.
        seed: The run's seed.
        batch_size: Samples per training step.
        cache: Whether to keep features where they are constant.
    """

    def __init__(self, cascade: Cascade, data: Data, seed: int, batch_size: int, cache: bool) -> None:
        self.cascade, self.data, self.seed, self.batch_size = cascade, data, seed, batch_size
        self.device = data.y.device
        self._constant = not data.augmented and not cascade.encoding.redraw
        self.caches = cache and self._constant
        self.height = 0
        self._features: Tensor | None = None
        self._targets: Tensor | None = None
        self._fixed: Tensor | None = None
        self._outputs: dict[View, list[Tensor]] = {}
        if not cascade.encoding.redraw:
            self._fixed = cascade.encoding.draw(data.y, self._generator("negatives"))

    @property
    def sensed(self) -> bool:
        """Whether `rows` are what the fed block's front has answered already."""
        return self._features is not None

    def climb(self, height: int) -> None:
        """Freeze the blocks below ``height``; their features are computed here if they can be kept."""
        # Not before training begins: a run that is taken up has its weights only then.
        if self.caches and self._features is None and self.cascade.units[0].front is not None:
            self._keep()
        while self.height < height:
            self.height += 1
            if self.caches and self.height < len(self.cascade.units):
                self._keep()

    def batches(self, n_samples: int) -> Iterator[Rows]:
        """The first ``n_samples`` training samples once, as rows for the first block."""
        n_samples = min(n_samples, len(self.data.y))
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
        if self._features is not None and self._targets is not None:
            return self._features[:, indices].flatten(0, 1), self._targets[:, indices].flatten()
        if self.height == 0 or not self._constant:
            rows, target = self._encoded(indices, epoch, step, scores)
            return ascend(self.cascade.units[: self.height], rows), target
        rows, target = self._encoded(self._filled(indices))
        rows = ascend(self.cascade.units[: self.height], rows)
        assert isinstance(rows, Tensor)
        return self._first(rows, len(indices)), self._first(target, len(indices))

    def outputs(self, x: Tensor, indices: Tensor, view: View) -> list[Tensor]:
        """Outputs of all blocks for samples ``x [B, ...]`` in ``view``, without a graph."""
        if view not in self._outputs:
            with torch.no_grad():
                return self.cascade.outputs(self.cascade.encoding.view(x, view))
        return [kept[indices] for kept in self._outputs[view]]

    def keep_outputs(self, view: View) -> None:
        """Keep the outputs of all blocks, which are frozen, for the training samples in ``view``."""
        if not self.caches or view in self._outputs:
            return
        chunks = torch.arange(len(self.data.y), device=self.device).split(self.batch_size)
        found = [self.outputs(self.samples(indices, 0, 0)[0], indices, view) for indices in chunks]
        self._outputs[view] = [torch.cat(parts) for parts in zip(*found, strict=True)]

    def _encoded(
        self, indices: Tensor, epoch: int = 0, step: int = 0, scores: Tensor | None = None
    ) -> tuple[Rows, Tensor]:
        x, y = self.samples(indices, epoch, step)
        encoding = self.cascade.encoding
        if encoding.redraw:
            return encoding.encode(x, y, encoding.draw(y, self._generator("negatives", epoch, step), scores))
        return encoding.encode(x, y, None if self._fixed is None else self._fixed[indices])

    @torch.no_grad()
    def _keep(self) -> None:
        """Replace the kept features by what the next block (and the front behind it) makes of them."""
        block, views = self.cascade.units[self.height], self.cascade.encoding.views
        below = self.cascade.units[self.height - 1] if self.height else None
        targets: list[Tensor] = []
        features: Tensor | None = None
        for indices in torch.arange(len(self.data.y), device=self.device).split(self.batch_size):
            filled = self._filled(indices)
            if self._features is not None and below is not None:
                rows, target = self.rows(filled, 0, 0)
                rows = below.body(rows)
            else:
                rows, target = self._encoded(filled)
                rows = rows if below is None else below(rows)
            answer = block.sense(rows)
            assert isinstance(answer, Tensor)
            found = answer.unflatten(0, (views, -1))[:, : len(indices)]
            if features is None:
                # Written in place: joining batches at the end would hold all of them twice.
                features = found.new_empty(views, len(self.data.y), *found.shape[2:])
            features[:, indices] = found
            targets.append(target.unflatten(0, (views, -1))[:, : len(indices)])
        self._features, self._targets = features, torch.cat(targets, 1)

    def _filled(self, indices: Tensor) -> Tensor:
        """``indices``, filled up to a whole batch: the answer to a shorter one has other bits."""
        whole = min(self.batch_size, len(self.data.y))
        return torch.cat([indices, indices[:1].expand(max(0, whole - len(indices)))])

    def _first(self, rows: Tensor, n: int) -> Tensor:
        """The rows of the first ``n`` samples of a filled batch."""
        by_view: Tensor = rows.unflatten(0, (self.cascade.encoding.views, -1))
        return by_view[:, :n].flatten(0, 1)

    def _generator(self, *parts: int | str) -> torch.Generator:
        return _seeds.generator(self.device, self.seed, *parts)
