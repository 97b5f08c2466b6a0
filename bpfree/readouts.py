"""Readouts: how the outputs of the blocks become class scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree.encodings import View
from bpfree.losses import LocalLoss
from bpfree.nn import LengthNorm, widened


def _scores(output: Tensor, loss: LocalLoss) -> Tensor:
    scores = loss.scores(output)
    if scores is None:
        raise BadValue(f"{type(loss).__name__} gives no scores: this readout cannot use it")
    return widened(scores)


class Readout(nn.Module):
    """Class scores ``[B, C]`` of the outputs of the first k blocks, for any k from 1.

    Attributes:
        view: How the input must be encoded for it.
        learns: Whether it has parameters of its own, which are trained on detached outputs.
        tells_blocks: Whether `per_block` can judge each block alone.
    """

    view: View = "plain"
    learns: bool = False
    tells_blocks: bool = True

    def build(self, outputs: Sequence[Tensor], n_classes: int) -> None:
        """Create what depends on the shapes of the blocks' outputs; called once."""

    def per_block(self, outputs: Sequence[Tensor], losses: Sequence[LocalLoss]) -> list[Tensor | None]:
        """Class scores ``[B, C]`` of each block alone; None where a loss gives none."""
        return [loss.scores(output) for output, loss in zip(outputs, losses, strict=True)]

    def objective(self, outputs: Sequence[Tensor], y: Tensor) -> Tensor:
        """The loss of a readout that learns."""
        raise TypeError(f"{type(self).__name__} has nothing to learn")


class BlockReadout(Readout):
    """The scores of one block, by default the last: early exit for free."""

    def __init__(self, block: int = -1) -> None:
        super().__init__()
        self.block = block

    def forward(self, outputs: Sequence[Tensor], losses: Sequence[LocalLoss]) -> Tensor:
        return _scores(outputs[self.block], losses[self.block])


class SumReadout(Readout):
    """The sum over blocks of their logits, or of their probabilities."""

    def __init__(self, probabilities: bool = False) -> None:
        super().__init__()
        self.probabilities = probabilities

    def forward(self, outputs: Sequence[Tensor], losses: Sequence[LocalLoss]) -> Tensor:
        scores = [_scores(o, loss) for o, loss in zip(outputs, losses, strict=True)]
        if self.probabilities:
            scores = [loss.probabilities(s) for s, loss in zip(scores, losses, strict=True)]
        return torch.stack(scores).sum(0)


class GoodnessReadout(Readout):
    """The label under which the blocks' goodness is largest: all C candidates in one batched pass.

    ``argmax_c sum_l (G_l(x, c) - theta_l)``, without the first block if ``skip_first`` and there is another.
    """

    view: View = "candidates"

    def __init__(self, skip_first: bool = True) -> None:
        super().__init__()
        self.skip_first = skip_first

    def forward(self, outputs: Sequence[Tensor], losses: Sequence[LocalLoss]) -> Tensor:
        first = int(self.skip_first and len(outputs) > 1)
        goodness = [_scores(o, loss) for o, loss in zip(outputs[first:], losses[first:], strict=True)]
        return self._by_candidate(torch.stack(goodness).sum(0))

    def per_block(self, outputs: Sequence[Tensor], losses: Sequence[LocalLoss]) -> list[Tensor | None]:
        return [None if g is None else self._by_candidate(g) for g in super().per_block(outputs, losses)]

    def _by_candidate(self, goodness: Tensor) -> Tensor:
        """``[C * B, 1]``, the first candidate's rows first, to ``[B, C]``."""
        return goodness.view(self.n_classes, -1).T

    def build(self, outputs: Sequence[Tensor], n_classes: int) -> None:
        self.n_classes = n_classes


class ClassifierReadout(Readout):
    """A linear layer on the length-normalised outputs under the neutral label.

    No bias, zero at the start, trained by cross-entropy beside the blocks; no gradient enters a block.
    """

    view: View = "neutral"
    learns = True
    tells_blocks = False

    def __init__(self, skip_first: bool = True) -> None:
        super().__init__()
        self.skip_first = skip_first
        self.norm = LengthNorm()

    def build(self, outputs: Sequence[Tensor], n_classes: int) -> None:
        self.linear = nn.Linear(
            self._features(outputs).shape[1], n_classes, bias=False, device=outputs[0].device
        )
        nn.init.zeros_(self.linear.weight)

    def _features(self, outputs: Sequence[Tensor]) -> Tensor:
        first = int(self.skip_first and len(outputs) > 1)
        return torch.cat([self.norm(o.flatten(1)) for o in outputs[first:]], 1)

    def forward(self, outputs: Sequence[Tensor], losses: Sequence[LocalLoss]) -> Tensor:
        return self.linear(self._features(outputs))  # type: ignore[no-any-return]

    def objective(self, outputs: Sequence[Tensor], y: Tensor) -> Tensor:
        return F.cross_entropy(self.linear(self._features(outputs)), y)
