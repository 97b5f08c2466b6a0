"""What the readouts say of a data set, with the frozen part of a greedy cascade computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bpfree._errors import Diverged
from bpfree.cascade import Cascade, Rows
from bpfree.encodings import View
from bpfree.nn import asking
from bpfree.schedules import Data

BATCH = 1024


class Evaluator:
    """Class scores of all samples of a data set.

    Args:
        cascade: The blocks and readouts.
        data: The samples; never augmented here.
        cache: Whether `climb` keeps the outputs of frozen blocks.
    """

    def __init__(self, cascade: Cascade, data: Data, cache: bool = False) -> None:
        self.cascade, self.data, self.cache = cascade, data, cache
        self.n_samples, self.height = len(data.y), 0
        self._frozen: dict[View, list[Tensor]] = {}
        self._sensed: dict[View, Tensor] = {}

    def first(self, n_samples: int) -> Evaluator:
        """An evaluator of the first ``n_samples`` alone."""
        few = Evaluator(self.cascade, self.data)
        few.n_samples = min(n_samples, self.n_samples)
        return few

    @torch.no_grad()
    def climb(self, height: int, readouts: Sequence[str]) -> None:
        """Freeze the blocks below ``height`` and the front of the next, for the views of ``readouts``."""
        if not self.cache:
            return
        views = {self.cascade.readout(name).view for name in readouts}
        starts = range(0, self.n_samples, BATCH)
        if height > self.height:
            for view in views:
                batches = [self._outputs(view, start, height) for start in starts]
                self._frozen[view] = [torch.cat(parts, 1) for parts in zip(*batches, strict=True)]
        self.height = height
        self._sensed = {}
        if height < len(self.cascade.units) and self.cascade.units[height].front is not None:
            self._sensed = {view: torch.cat([self._sense(view, i) for i in starts], 1) for view in views}

    @torch.no_grad()
    def outputs(self, number: int, n_blocks: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Output ``number`` of the first ``n_blocks`` blocks for the samples as they are, and the labels."""
        self.cascade.eval()
        for start in range(0, self.n_samples, BATCH):
            found = self._outputs("plain", start, n_blocks)[number].flatten(0, 1)
            yield found, self.data.y[start : start + len(found)]

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
        teller = next((name for name in readouts if self.cascade.readout(name).tells_blocks), None)
        for view in dict.fromkeys(self.cascade.readout(name).view for name in readouts):
            for start in range(0, self.n_samples, BATCH):
                outputs = [o.flatten(0, 1) for o in self._outputs(view, start, n_blocks)]
                losses = self.cascade.losses[: len(outputs)]
                for name in readouts:
                    if self.cascade.readout(name).view == view:
                        found.setdefault(name, []).append(self.cascade.readout(name)(outputs, losses))
                if teller is not None and self.cascade.readout(teller).view == view:
                    for k, scores in enumerate(self.cascade.readout(teller).per_block(outputs, losses)):
                        if scores is not None:
                            found.setdefault(f"block {k + 1}", []).append(scores)
        self.cascade.train(training)
        return {name: torch.cat(parts) for name, parts in found.items()}

    def accuracies(self, readouts: Sequence[str], n_blocks: int | None = None) -> dict[str, float]:
        """Share of samples that each readout, and each block alone, classifies rightly."""
        scores = self.scores(readouts, n_blocks)
        for name, found in scores.items():
            if not found.isfinite().all():
                raise Diverged(
                    f"the scores of {name} are not finite: nor are the samples, or the weights by now"
                )
        encoding = self.cascade.encoding
        answers = encoding.answers(self.data)[: self.n_samples]
        return {name: encoding.judge(s, answers) for name, s in scores.items()}

    def _sense(self, view: View, start: int) -> Tensor:
        """What the front of the block at ``height`` answers to one batch of samples, ``[views, B, ...]``."""
        block, below = self.cascade.units[self.height], self._outputs(view, start, self.height)
        indices = self._indices(start)
        rows: Rows
        if below:
            rows = below[-1].flatten(0, 1)
        else:
            rows = self.cascade.encoding.view(self.data.batch(indices)[0], view)
        with asking(self.cascade, "eval"):
            answer = block.sense(rows)
        assert isinstance(answer, Tensor)
        found: Tensor = answer.unflatten(0, (-1, len(indices)))
        return found

    def _indices(self, start: int) -> Tensor:
        return torch.arange(start, min(start + BATCH, self.n_samples), device=self.data.y.device)

    def _outputs(self, view: View, start: int, n_blocks: int | None) -> list[Tensor]:
        """Outputs of the first blocks for one batch of samples, ``[views, B, ...]`` each."""
        indices = self._indices(start)
        kept = [o[:, indices] for o in self._frozen.get(view, [])]
        rows: Rows
        if kept:
            rows = kept[-1].flatten(0, 1)
            blocks = self.cascade.units[self.height : n_blocks]
        else:
            x, _ = self.data.batch(indices)
            rows = self.cascade.encoding.view(x, view)
            blocks = self.cascade.units[:n_blocks]
        for block in blocks:
            with asking(self.cascade, "eval"):
                if view in self._sensed and block is self.cascade.units[self.height]:
                    outputs = [block.body(self._sensed[view][:, indices].flatten(0, 1))]
                else:
                    outputs = block.outputs(rows)
            kept += [o.unflatten(0, (-1, len(indices))) for o in outputs]
            rows = outputs[-1]
        return kept
