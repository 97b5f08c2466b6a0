"""Readouts: how the outputs of the blocks become class scores."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree._settings import Must
from bpfree.encodings.base import View
from bpfree.losses import LocalLoss, ScoringLoss
from bpfree.nn import LengthNorm, at_least_float32


class Readout(nn.Module, ABC):
    """Class scores ``[B, C]`` of the outputs of the first k blocks, for any k from 1.

    `collect` takes what the readout needs of one block; `predict` makes scores of what was collected. Of a
    frozen block, only what was collected needs to be cached.

    Attributes:
        view: How the input must be encoded for it.
        input_kind: What it collects of a block. Readouts of the same kind collect the same.
        learns: Whether it has parameters of its own, which are trained on detached outputs.
        scores_blocks: Whether `per_block` gives scores of each block alone.
    """

    view: View = "plain"
    input_kind: ClassVar[str] = "scores"
    learns: bool = False
    scores_blocks: bool = True

    def planned_parameters(self, outputs: Sequence[Tensor], n_classes: int) -> int:
        """How many trainable values `build` will create; none here."""
        return 0

    def build(self, outputs: Sequence[Tensor], n_classes: int) -> None:
        """Create what depends on the shapes of the blocks' outputs; called once."""

    def collect(self, output: Tensor, loss: LocalLoss) -> Tensor | None:
        """What it needs of one block's output ``[rows, ...]``: the scores, or None if the loss has none."""
        scores = loss.scores(output)
        return None if scores is None else at_least_float32(scores)

    def depends_on(self, first: int, stop: int) -> bool:
        """Whether its scores change while the blocks ``first`` to ``stop - 1``, the highest so far, train."""
        return True

    @abstractmethod
    def predict(self, collected: Sequence[Tensor | None], losses: Sequence[LocalLoss]) -> Tensor:
        """Class scores ``[B, C]``, given what was collected of each block, bottom first."""

    def forward(self, outputs: Sequence[Tensor], losses: Sequence[LocalLoss]) -> Tensor:
        return self.predict([self.collect(o, loss) for o, loss in zip(outputs, losses, strict=True)], losses)

    def block_scores(self, collected: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Class scores ``[B, C]`` of each block alone; None where a loss gives none."""
        return list(collected)

    def per_block(self, outputs: Sequence[Tensor], losses: Sequence[LocalLoss]) -> list[Tensor | None]:
        """`block_scores` of the blocks' outputs."""
        return self.block_scores([self.collect(o, loss) for o, loss in zip(outputs, losses, strict=True)])

    def objective(self, outputs: Sequence[Tensor], y: Tensor) -> Tensor:
        """The loss of a readout that learns."""
        raise TypeError(f"{type(self).__name__} has nothing to learn")


def class_probabilities(scores: Tensor, loss: LocalLoss) -> Tensor:
    """Probabilities ``[rows, C]`` of class scores ``[rows, C]``; the softmax, unless the loss has its own."""
    if isinstance(loss, ScoringLoss):
        return loss.probabilities(scores)
    return at_least_float32(scores).softmax(1)


def _checked(collected: Tensor | None, loss: LocalLoss) -> Tensor:
    if collected is None:
        raise BadValue(f"{type(loss).__name__} gives no scores: this readout cannot use it")
    return collected


class BlockReadout(Readout):
    """The scores of one block, by default the last: an early exit.

    While there are fewer blocks, as in a greedy run, it is the highest of them.

    Args:
        block: Its number from 0, or -1 for the last.

    Raises:
        BadValue: When it is built, if there is no such block.
    """

    def __init__(self, block: int = -1) -> None:
        super().__init__()
        self.block = block

    def build(self, outputs: Sequence[Tensor], n_classes: int) -> None:
        if self.block >= len(outputs):
            raise BadValue(f"readout = 'block:{self.block + 1}': expected a number from 1 to {len(outputs)}")

    def depends_on(self, first: int, stop: int) -> bool:
        return self.block < 0 or self.block >= first

    def predict(self, collected: Sequence[Tensor | None], losses: Sequence[LocalLoss]) -> Tensor:
        k = min(self.block, len(collected) - 1)
        return _checked(collected[k], losses[k])

    def forward(self, outputs: Sequence[Tensor], losses: Sequence[LocalLoss]) -> Tensor:
        # The heads of the other blocks are not computed.
        k = min(self.block, len(outputs) - 1)
        return _checked(self.collect(outputs[k], losses[k]), losses[k])


class SumReadout(Readout):
    """The sum over blocks of their logits, or of their probabilities."""

    def __init__(self, probabilities: bool = False) -> None:
        super().__init__()
        self.probabilities = probabilities

    def predict(self, collected: Sequence[Tensor | None], losses: Sequence[LocalLoss]) -> Tensor:
        scores = [_checked(h, loss) for h, loss in zip(collected, losses, strict=True)]
        if self.probabilities:
            scores = [class_probabilities(s, loss) for s, loss in zip(scores, losses, strict=True)]
        return torch.stack(scores).sum(0)


class GoodnessReadout(Readout):
    """The label under which the blocks' goodness is largest: all C candidates in one batched pass.

    ``argmax_c sum_l (G_l(x, c) - theta_l)``, without the first block if ``skip_first`` and there is another.

    Args:
        skip_first: Whether to leave out the first block.
        of: Which of the blocks count; by default the sum of all.
    """

    view: View = "candidates"

    def __init__(self, skip_first: bool = True, of: Readout | None = None) -> None:
        super().__init__()
        self.skip_first, self.of = skip_first, SumReadout() if of is None else of

    def depends_on(self, first: int, stop: int) -> bool:
        return self.of.depends_on(first, stop)

    def predict(self, collected: Sequence[Tensor | None], losses: Sequence[LocalLoss]) -> Tensor:
        first = int(self.skip_first and len(collected) > 1)
        return self._by_candidate(self.of.predict(collected[first:], losses[first:]))

    def block_scores(self, collected: Sequence[Tensor | None]) -> list[Tensor | None]:
        return [None if g is None else self._by_candidate(g) for g in collected]

    def _by_candidate(self, goodness: Tensor) -> Tensor:
        """``[C * B, 1]``, the first candidate's rows first, to ``[B, C]``."""
        return goodness.view(self.n_classes, -1).T

    def build(self, outputs: Sequence[Tensor], n_classes: int) -> None:
        self.of.build(outputs, n_classes)
        self.n_classes = n_classes


class ClassifierReadout(Readout):
    """A linear layer on the normalized outputs under the neutral label.

    No bias, zero at the start, trained by cross-entropy beside the blocks; no gradient enters a block.

    Args:
        skip_first: Whether to leave out the first block.
        norm: The normalization; by default that of the length.
    """

    view: View = "neutral"
    input_kind = "features"
    learns = True
    scores_blocks = False

    def __init__(self, skip_first: bool = True, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.skip_first = skip_first
        self.norm = LengthNorm() if norm is None else norm

    def planned_parameters(self, outputs: Sequence[Tensor], n_classes: int) -> int:
        first = int(self.skip_first and len(outputs) > 1)
        return n_classes * sum(output[0].numel() for output in outputs[first:])

    def build(self, outputs: Sequence[Tensor], n_classes: int) -> None:
        self.linear = nn.Linear(
            self._features(outputs).shape[1], n_classes, bias=False, device=outputs[0].device
        )
        nn.init.zeros_(self.linear.weight)

    def collect(self, output: Tensor, loss: LocalLoss | None = None) -> Tensor:
        """The normalized features, ``[rows, n]``."""
        features: Tensor = self.norm(output.flatten(1))
        return features

    def predict(self, collected: Sequence[Tensor | None], losses: Sequence[LocalLoss]) -> Tensor:
        features = [features for features in collected if features is not None]
        first = int(self.skip_first and len(features) > 1)
        scores: Tensor = self.linear(torch.cat(features[first:], 1))
        return scores

    def forward(self, outputs: Sequence[Tensor], losses: Sequence[LocalLoss]) -> Tensor:
        return self.linear(self._features(outputs))  # type: ignore[no-any-return]

    def objective(self, outputs: Sequence[Tensor], y: Tensor) -> Tensor:
        first = int(self.skip_first and len(outputs) > 1)
        features = torch.cat([self.collect(output) for output in outputs[first:]], 1)
        return F.cross_entropy(self.linear(features), y)

    def _features(self, outputs: Sequence[Tensor]) -> Tensor:
        first = int(self.skip_first and len(outputs) > 1)
        return torch.cat([self.collect(output) for output in outputs[first:]], 1)


class OnePassReadout(ClassifierReadout):
    """A linear layer with softmax on the magnitudes ``|z|`` of all blocks, without a label in the input.

    It is not part of the paper on physical local learning. It costs one pass of a device for each sample,
    where the goodness readout costs one for each class, and further passes in training.
    """

    input_kind = "magnitudes"

    def __init__(self) -> None:
        super().__init__(skip_first=False)

    def collect(self, output: Tensor, loss: LocalLoss | None = None) -> Tensor:
        """The length-normalized magnitudes, ``[rows, n]``."""
        return super().collect(output.abs(), loss)


def _check_name(name: str) -> None:
    if name not in ("last", "sum", "sum_probabilities") and not re.fullmatch(r"block:[1-9][0-9]{0,5}", name):
        raise ValueError("expected 'last', 'sum', 'sum_probabilities' or 'block:k', k from 1")


#: The prediction rule of blocks that each give scores: the last block's, the sum of all, of their
#: probabilities, or those of block k, counted from 1.
ReadoutName = Annotated[str, Must(_check_name)]


def make_readouts(headline: str, losses: Sequence[LocalLoss]) -> dict[str, Readout]:
    """The readouts of blocks with these losses, ``headline`` (a `ReadoutName`) first, the usual ones beside.

    Raises:
        BadValue: If not every block gives the scores that ``headline`` needs.
    """
    readouts: dict[str, Readout] = {"last": BlockReadout()}
    signed = all(loss.signed for loss in losses)
    if not any(type(loss).scores is LocalLoss.scores for loss in losses):
        readouts["sum"] = SumReadout()
        if not signed:
            readouts["sum_probabilities"] = SumReadout(probabilities=True)
    if headline.startswith("block:"):
        readouts[headline] = BlockReadout(int(headline.removeprefix("block:")) - 1)
    if headline not in readouts:
        raise BadValue(
            f"readout = {headline!r}: not every block gives class scores; possible: {', '.join(readouts)}"
        )
    readouts = {headline: readouts.pop(headline)} | readouts
    if signed:
        return {name: GoodnessReadout(name == "sum", readout) for name, readout in readouts.items()}
    return readouts
