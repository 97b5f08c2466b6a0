"""Training rows of the lowest block that is not frozen: from the data, or from cached features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from bpfree import _seeds
from bpfree._feature_store import RowBuffer, Store, select_samples
from bpfree._rows import Rows
from bpfree.core.cascade import Cascade
from bpfree.encodings.base import Encoding, LabeledSamples, View
from bpfree.engine.base_feed import BaseFeed
from bpfree.engine.step import forward
from bpfree.nn import counted_modules


class Data(LabeledSamples, Protocol):
    """The part of a data set that the engine uses; `bpfree.data.TensorData` is one."""

    @property
    def augmented(self) -> bool:
        """Whether samples are augmented at random in each step."""


class Feed(BaseFeed):
    """Training rows from labeled samples.

    If neither the data nor the encoding changes between epochs, the outputs of the frozen blocks (and of the
    front above them) are computed once per sample and cached, in batches of the training size, so that they
    have the same bits as without a cache. If the encoding draws one of a few variants of a sample, all
    variants are cached. The last batch is padded to the training size for the same reason, except for a front
    whose passes are counted.

    Args:
        cascade: The blocks and the encoding.
        data: The training data.
        seed: The run's seed.
        batch_size: Samples per training step.
        cache: Whether constant features are cached.
        store: Where they are stored; by default in memory.
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
        encoding = cascade.encoding
        self.cascade, self.encoding, self.data = cascade, encoding, data
        self.seed, self.batch_size = seed, batch_size
        self.device, self.store = data.y.device, store or Store()
        self._augmented = data.augmented
        # An encoding that does not override `encode` returns samples and labels as they are.
        self._as_is = type(encoding).encode is Encoding.encode
        self._constant = not data.augmented and not encoding.redraw
        self._variants = encoding.redraw and type(encoding).variants is not Encoding.variants
        self.caches = cache and not data.augmented and (self._variants or self._constant)
        self.height = 0
        #: Cached features, ``[views or variants, N, ...]``.
        self.features: Tensor | None = None
        self.made_in = 0
        self._targets: Tensor | None = None
        self._random_part: Tensor | None = None
        self._outputs: dict[View, list[Tensor]] = {}
        #: The samples of the last step that `samples` returned, with its indices, epoch and number.
        self._batch: tuple[Tensor, int, int, Tensor, Tensor] | None = None
        if not encoding.redraw:
            self._random_part = encoding.draw(data.y, _seeds.generator(self.device, seed, "negatives"))

    @property
    def front_output(self) -> bool:
        return self.features is not None

    @property
    def measured(self) -> bool:
        return self.front_output and self._counts_passes(self.height + 1)

    def freeze_below(self, height: int) -> None:
        # Not in the constructor: the weights of a resumed run are loaded later.
        if self.caches and self.features is None and self.cascade.units[0].front is not None:
            self._cache_next()
        while self.height < height:
            self.height += 1
            if self.caches and self.height < len(self.cascade.units):
                self._cache_next()

    def restore(self, height: int, features: Tensor, made_in: int) -> None:
        cached = self._buffer()
        cached.append(features)
        self.height, self.features, self.made_in = height, cached.tensor, made_in
        if not self._variants:
            self._targets = self._all_targets()

    def renew(self, epoch: int) -> None:
        self.features, self.made_in = None, epoch
        self._cache_next()

    def batches(self, n_samples: int, drop_last: bool = False) -> Iterator[Rows]:
        n_samples = min(n_samples, len(self.data.y))
        if drop_last and n_samples > self.batch_size:
            n_samples -= n_samples % self.batch_size
        for indices in torch.arange(n_samples, device=self.device).split(self.batch_size):
            yield self._encoded(indices)[0]

    def samples(self, indices: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        generator = None
        if self._augmented:
            generator = _seeds.generator(self.device, self.seed, "augment", epoch, step)
        x, y = self.data.batch(indices, generator)
        if not self._as_is:
            # Used by `rows` in the same step. The encoding copies them, so the body cannot modify them.
            self._batch = (indices, epoch, step, x, y)
        return x, y

    def rows(
        self, indices: Tensor, epoch: int, step: int, scores: Tensor | None = None
    ) -> tuple[Rows, Tensor]:
        if self.features is None:
            if self.height == 0:
                return self._encoded(indices, epoch, step, scores)
            return self._computed(indices, epoch, step, scores)
        if self._targets is not None:
            return select_samples(self.features, indices).flatten(0, 1), self._targets[:, indices].flatten()
        y = self.data.y.index_select(0, indices)
        variants, target = self.encoding.chosen_variants(y, self._draw(y, epoch, step, scores))
        return select_samples(self.features, indices, variants).flatten(0, 1), target

    def _computed(self, indices: Tensor, epoch: int, step: int, scores: Tensor | None) -> tuple[Rows, Tensor]:
        """Rows above frozen blocks that are not cached."""
        below = self.cascade.units[: self.height]
        if not self._constant or self._counts_passes(self.height):
            rows, target = self._encoded(indices, epoch, step, scores)
            return forward(below, rows), target
        rows, target = self._encoded(self._padded(indices))
        rows = forward(below, rows)
        assert isinstance(rows, Tensor)
        return self._first(rows, len(indices)), self._first(target, len(indices))

    def outputs(self, x: Tensor, indices: Tensor, view: View) -> list[Tensor]:
        if view not in self._outputs:
            with torch.no_grad():
                return self.cascade.outputs(self.encoding.view(x, view))
        return [select_samples(cached, indices)[0] for cached in self._outputs[view]]

    def cache_outputs(self, view: View) -> None:
        if not self.caches or view in self._outputs:
            return
        chunks = torch.arange(len(self.data.y), device=self.device).split(self.batch_size)
        cached: list[RowBuffer] = []
        for indices in chunks:
            outputs = self.outputs(self.samples(indices, 0, 0)[0], indices, view)
            cached = cached or [self._buffer() for _ in outputs]
            for buffer, output in zip(cached, outputs, strict=True):
                buffer.append(output.unsqueeze(0))
        self._outputs[view] = [buffer.tensor for buffer in cached]

    def _encoded(
        self, indices: Tensor, epoch: int = 0, step: int = 0, scores: Tensor | None = None
    ) -> tuple[Rows, Tensor]:
        batch, self._batch = self._batch, None
        if batch is not None and batch[0] is indices and batch[1:3] == (epoch, step):
            x, y = batch[3:]
        elif self._augmented:
            x, y = self.samples(indices, epoch, step)
            self._batch = None
        else:
            x, y = self.data.batch(indices)
        if self._as_is:
            return x, y
        if self.encoding.redraw:
            return self.encoding.encode(x, y, self._draw(y, epoch, step, scores))
        return self.encoding.encode(x, y, None if self._random_part is None else self._random_part[indices])

    def _draw(self, y: Tensor, epoch: int, step: int, scores: Tensor | None) -> Tensor | None:
        generator = _seeds.generator(self.device, self.seed, "negatives", epoch, step)
        return self.encoding.draw(y, generator, scores)

    @torch.no_grad()
    def _cache_next(self) -> None:
        """Replace the cached features by the outputs of the next block, and of the front above it."""
        block, below = self.cascade.units[self.height], self.cascade.units[: self.height]
        cached = self._buffer()
        for indices in torch.arange(len(self.data.y), device=self.device).split(self.batch_size):
            padded = indices if self._counts_passes(self.height + 1) else self._padded(indices)
            if self.features is not None:
                rows: Rows = below[-1].body_output(select_samples(self.features, padded).flatten(0, 1))
            else:
                rows = forward(below, self._all_rows(padded))
            front_output = block.run_front(rows)
            assert isinstance(front_output, Tensor)
            cached.append(front_output.unflatten(0, (-1, len(padded)))[:, : len(indices)])
        self.features = cached.tensor
        if not self._variants and self._targets is None:
            self._targets = self._all_targets()

    def _all_rows(self, indices: Tensor) -> Rows:
        """All rows of samples: in all views, or in all variants if variants are drawn."""
        if not self._variants:
            return self._encoded(indices)[0]
        return self.encoding.variants(self.data.batch(indices)[0])

    def _all_targets(self) -> Tensor:
        chunks = torch.arange(len(self.data.y), device=self.device).split(self.batch_size)
        views = self.encoding.views
        return torch.cat([self._encoded(i)[1].unflatten(0, (views, -1)) for i in chunks], 1)

    def _counts_passes(self, height: int) -> bool:
        """Whether a front of the first ``height`` blocks counts its passes."""
        return any(counted_modules(block) for block in self.cascade.units[:height])

    def _padded(self, indices: Tensor) -> Tensor:
        """Pad ``indices`` to a full batch: the results of a shorter batch can have other bits."""
        size = min(self.batch_size, len(self.data.y))
        return torch.cat([indices, indices[:1].expand(max(0, size - len(indices)))])

    def _first(self, rows: Tensor, n: int) -> Tensor:
        """The rows of the first ``n`` samples of a padded batch."""
        by_view: Tensor = rows.unflatten(0, (self.encoding.views, -1))
        return by_view[:, :n].flatten(0, 1)

    def _buffer(self) -> RowBuffer:
        return RowBuffer(self.store, len(self.data.y))
