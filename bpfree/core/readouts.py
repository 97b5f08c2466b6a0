"""Readouts, which compute class scores from the outputs of blocks."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree._renamed import refuse_old_members
from bpfree._settings import Must
from bpfree.encodings.base import View
from bpfree.losses import LocalLoss, ScoringLoss
from bpfree.nn import LengthNorm, at_least_float32

#: Members of 0.1, and what takes their place.
REPLACED = {
    "ear": "the attribute input_kind",
    "hear": "collect(output, loss)",
    "judge": "predict(collected, losses)",
    "apart": "block_scores(collected)",
    "concerns": "depends_on(first, stop)",
    "tells_blocks": "the attribute scores_blocks",
    "planned": "planned_parameters(outputs, n_classes)",
}


class Readout(nn.Module, ABC):
    """Computes class scores ``[B, C]`` from the outputs of the first k blocks, for any k from 1.

    `collect` reduces the output of one block to the tensor that the readout needs. `predict` computes the
    scores from these tensors. For frozen blocks, only the collected tensors are cached.

    Attributes:
        view: The view of a sample that is the input of the blocks, see `bpfree.encodings.Encoding.view`.
        input_kind: Name of the collected tensors. Readouts with the same name collect the same tensors.
        learns: Whether it has parameters, which are trained on detached outputs.
        scores_blocks: Whether `block_scores` returns the scores of each block.
    """

    view: View = "plain"
    input_kind: ClassVar[str] = "scores"
    learns: bool = False
    scores_blocks: bool = True

    def __init_subclass__(cls, **options: object) -> None:
        """Refuse members of 0.1.

        Raises:
            BadValue: If the class defines one, with what takes its place.
        """
        super().__init_subclass__(**options)
        refuse_old_members(cls, REPLACED)

    def planned_parameters(self, outputs: Sequence[Tensor], n_classes: int) -> int:
        """Return the number of trainable values that `build` will create; by default 0."""
        return 0

    def build(self, outputs: Sequence[Tensor], n_classes: int) -> None:
        """Create parameters that depend on the shapes of the blocks' outputs. Called once."""

    def collect(self, output: Tensor, loss: LocalLoss) -> Tensor | None:
        """Return the tensor that `predict` needs of one block; by default its scores.

        Args:
            output: The output of the block, ``[rows, ...]``.
            loss: The loss of the block.

        Returns:
            ``[rows, ...]``, or None if the loss has no scores.
        """
        scores = loss.scores(output)
        return None if scores is None else at_least_float32(scores)

    def depends_on(self, first: int, stop: int) -> bool:
        """Whether its scores depend on blocks ``first`` to ``stop - 1``; block ``stop - 1`` is the last."""
        return True

    @abstractmethod
    def predict(self, collected: Sequence[Tensor | None], losses: Sequence[LocalLoss]) -> Tensor:
        """Compute class scores ``[B, C]`` from the collected tensors of all blocks, bottom first."""

    def forward(self, outputs: Sequence[Tensor], losses: Sequence[LocalLoss]) -> Tensor:
        return self.predict([self.collect(o, loss) for o, loss in zip(outputs, losses, strict=True)], losses)

    def block_scores(self, collected: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Compute class scores ``[B, C]`` of each block; None for a loss without scores."""
        return list(collected)

    def per_block(self, outputs: Sequence[Tensor], losses: Sequence[LocalLoss]) -> list[Tensor | None]:
        """Compute `block_scores` from the outputs of the blocks."""
        return self.block_scores([self.collect(o, loss) for o, loss in zip(outputs, losses, strict=True)])

    def objective(self, outputs: Sequence[Tensor], y: Tensor) -> Tensor:
        """Compute the loss of a readout with parameters.

        Raises:
            TypeError: If the readout has no parameters.
        """
        raise TypeError(f"{type(self).__name__} has no parameters to train")


def class_probabilities(scores: Tensor, loss: LocalLoss) -> Tensor:
    """Return probabilities ``[rows, C]`` of class scores ``[rows, C]``: those of the loss, or the softmax."""
    if isinstance(loss, ScoringLoss):
        return loss.probabilities(scores)
    return at_least_float32(scores).softmax(1)


def _require_scores(collected: Tensor | None, loss: LocalLoss) -> Tensor:
    if collected is None:
        raise BadValue(
            f"{type(loss).__name__} has no scores, which this readout needs: implement scores, or use "
            "another readout"
        )
    return collected


class BlockReadout(Readout):
    """The scores of one block, by default the last. For another block it is an early exit.

    If there are fewer blocks, as in the first stages of a greedy run, the highest one is used.

    Args:
        block: Index of the block from 0, or -1 for the last.

    Raises:
        BadValue: In `build`, if there is no such block.
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
        return _require_scores(collected[k], losses[k])

    def forward(self, outputs: Sequence[Tensor], losses: Sequence[LocalLoss]) -> Tensor:
        # Unlike the base class, without the heads of the other blocks.
        k = min(self.block, len(outputs) - 1)
        return _require_scores(self.collect(outputs[k], losses[k]), losses[k])


class SumReadout(Readout):
    """The sum of the scores of all blocks, or of their probabilities.

    Args:
        probabilities: Whether to sum probabilities.
    """

    def __init__(self, probabilities: bool = False) -> None:
        super().__init__()
        self.probabilities = probabilities

    def predict(self, collected: Sequence[Tensor | None], losses: Sequence[LocalLoss]) -> Tensor:
        scores = [_require_scores(t, loss) for t, loss in zip(collected, losses, strict=True)]
        if self.probabilities:
            scores = [class_probabilities(s, loss) for s, loss in zip(scores, losses, strict=True)]
        return torch.stack(scores).sum(0)


class GoodnessReadout(Readout):
    """The goodness of each candidate label as its score. All C candidates are computed in one batch.

    The prediction is ``argmax_c sum_l (G_l(x, c) - theta_l)``, without the first block if ``skip_first`` is
    set and there are others.

    Args:
        skip_first: Whether to omit the first block.
        of: How the goodness of the blocks is combined; by default by `SumReadout`.
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
        """Reshape ``[C * B, 1]``, ordered by candidate, to ``[B, C]``."""
        return goodness.view(self.n_classes, -1).T

    def build(self, outputs: Sequence[Tensor], n_classes: int) -> None:
        self.of.build(outputs, n_classes)
        self.n_classes = n_classes


class ClassifierReadout(Readout):
    """A linear layer on the normalized outputs of all blocks, for the input with the neutral label.

    It has no bias and is initialized with zeros. It is trained by cross-entropy at the same time as the
    blocks, on detached outputs.

    Args:
        skip_first: Whether to omit the first block.
        norm: The normalization; by default `LengthNorm`.
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
        """Return the normalized features, ``[rows, n]``."""
        features: Tensor = self.norm(output.flatten(1))
        return features

    def predict(self, collected: Sequence[Tensor | None], losses: Sequence[LocalLoss]) -> Tensor:
        features = [features for features in collected if features is not None]
        first = int(self.skip_first and len(features) > 1)
        scores: Tensor = self.linear(torch.cat(features[first:], 1))
        return scores

    def forward(self, outputs: Sequence[Tensor], losses: Sequence[LocalLoss]) -> Tensor:
        result: Tensor = self.linear(self._features(outputs))
        return result

    def objective(self, outputs: Sequence[Tensor], y: Tensor) -> Tensor:
        first = int(self.skip_first and len(outputs) > 1)
        features = torch.cat([self.collect(output) for output in outputs[first:]], 1)
        return F.cross_entropy(self.linear(features), y)

    def _features(self, outputs: Sequence[Tensor]) -> Tensor:
        first = int(self.skip_first and len(outputs) > 1)
        return torch.cat([self.collect(output) for output in outputs[first:]], 1)


class OnePassReadout(ClassifierReadout):
    """A linear layer on the magnitudes ``|z|`` of all blocks, for the input with the neutral label.

    It is not part of the paper on physical local learning. A prediction needs one pass of a device per
    sample, and that of the goodness readout one per class. Training needs additional passes.
    """

    input_kind = "magnitudes"

    def __init__(self) -> None:
        super().__init__(skip_first=False)

    def collect(self, output: Tensor, loss: LocalLoss | None = None) -> Tensor:
        """Return the normalized magnitudes, ``[rows, n]``."""
        return super().collect(output.abs(), loss)


def _check_name(name: str) -> None:
    if name not in ("last", "sum", "sum_probabilities") and not re.fullmatch(r"block:[1-9][0-9]{0,5}", name):
        raise ValueError("expected 'last', 'sum', 'sum_probabilities' or 'block:k', k from 1")


#: Readouts of blocks with scores: ``last``, the last block; ``sum``, the sum of all scores;
#: ``sum_probabilities``, the sum of all probabilities; or ``block:k``, block k, counted from 1.
ReadoutName = Annotated[str, Must(_check_name)]


def make_readouts(headline: str, losses: Sequence[LocalLoss]) -> dict[str, Readout]:
    """Return the readouts of blocks with these losses, by name.

    Args:
        headline: The readout that computes predictions, a `ReadoutName`. It is the first in the result,
            before all other readouts that are possible.
        losses: The losses of the blocks, bottom first.

    Raises:
        BadValue: If a loss does not have the scores that ``headline`` needs.
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
            f"readout = {headline!r}: needs class scores of all blocks, which not all losses have; use one "
            f"of {', '.join(readouts)}"
        )
    readouts = {headline: readouts.pop(headline)} | readouts
    if signed:
        return {name: GoodnessReadout(name == "sum", readout) for name, readout in readouts.items()}
    return readouts
