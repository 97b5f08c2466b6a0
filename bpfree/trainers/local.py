"""Blocks that each classify, or follow any registered local loss: Mono-Forward and its kin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from bpfree._errors import BadValue
from bpfree.cascade import Block, Cascade
from bpfree.losses import LocalCrossEntropy, LocalLoss, make_loss
from bpfree.readouts import BlockReadout, Readout, SumReadout
from bpfree.trainers.base import Trainer, single_weights
from bpfree.trainers.settings import TrainerSettings

ReadoutName = Literal["last", "sum", "sum_probabilities"]


def class_score_readouts(headline: ReadoutName, last_only: bool = False) -> dict[str, Readout]:
    """The readouts of blocks that give class scores, ``headline`` first."""
    readouts: dict[str, Readout] = {"last": BlockReadout()}
    if not last_only:
        readouts |= {"sum": SumReadout(), "sum_probabilities": SumReadout(probabilities=True)}
    if headline not in readouts:
        raise BadValue(f"readout = {headline!r}: not every block gives class scores; only 'last' is possible")
    return {headline: readouts.pop(headline)} | readouts


@dataclass(frozen=True, kw_only=True)
class LocalSettings(TrainerSettings):
    """Settings of `Local`.

    Attributes:
        loss: Name of the local loss of every block but the last, see `bpfree.register_loss`; a cascade that
            `bpfree.localize` made keeps its own.
        readout: The prediction rule.
    """

    loss: str = "mono_forward"
    readout: ReadoutName = "last"


class Local(Trainer):
    """Trains every block by a registered local loss.

    The last block is headed by the network's output layer, under cross-entropy.
    """

    id = "local"
    Settings = LocalSettings
    settings: LocalSettings

    def make_cascade(self, n_classes: int) -> Cascade:
        if isinstance(self.net, Cascade):
            return self.net.lead(self.settings.readout)
        stages, output = self.stages(self.settings.cut)
        losses = [make_loss(self.settings.loss) for _ in stages[:-1]]
        blocks = [
            Block(stage, loss)
            for stage, loss in zip(stages, [*losses, LocalCrossEntropy(output)], strict=True)
        ]
        silent = any(type(loss).scores is LocalLoss.scores for loss in losses)
        readouts = class_score_readouts(self.settings.readout, last_only=silent)
        return Cascade(blocks, readouts, source=self.net if self.settings.readout == "last" else None)

    @property
    def locality(self) -> str:
        return "L2" if single_weights(self.cascade.units) else "L1"


@dataclass(frozen=True, kw_only=True)
class MonoForwardSettings(TrainerSettings):
    """Settings of Mono-Forward.

    Attributes:
        readout: The prediction rule: the last block's scores, or the sum of all blocks' scores or
            probabilities. Accuracy under the others is reported beside it.
        gradients: ``autograd``; ``analytic`` takes the closed form of each step (multilayer perceptrons).
    """

    readout: ReadoutName = "last"
    gradients: Literal["autograd", "analytic"] = "autograd"


class MonoForward(Trainer):
    """Each block classifies by a projection of its own (Gong et al., arXiv 2501.09238).

    The network's output layer is the projection of the last block; the others get one without bias.
    """

    id = "mono_forward"
    Settings = MonoForwardSettings
    settings: MonoForwardSettings

    def make_cascade(self, n_classes: int) -> Cascade:
        if isinstance(self.net, Cascade):
            for block in self.net.units:
                block.gradients = self.settings.gradients
            return self.net.lead(self.settings.readout)
        stages, output = self.stages(self.settings.cut)
        losses = [*(LocalCrossEntropy() for _ in stages[:-1]), LocalCrossEntropy(output)]
        blocks = [
            Block(stage, loss, gradients=self.settings.gradients)
            for stage, loss in zip(stages, losses, strict=True)
        ]
        readouts = class_score_readouts(self.settings.readout)
        return Cascade(blocks, readouts, source=self.net if self.settings.readout == "last" else None)

    @property
    def locality(self) -> str:
        if self.settings.gradients == "analytic":
            return "L3"
        return "L2" if single_weights(self.cascade.units) else "L1"


@dataclass(frozen=True, kw_only=True)
class RandomFeaturesSettings(TrainerSettings):
    """Settings of the random-features control.

    Attributes:
        readout: The prediction rule, as in Mono-Forward.
    """

    readout: ReadoutName = "last"


class RandomFeatures(Trainer):
    """Mono-Forward's heads on blocks that keep their random weights: what the heads can do alone.

    Every stage is a fixed front.
    """

    id = "random_features"
    Settings = RandomFeaturesSettings
    settings: RandomFeaturesSettings

    def make_cascade(self, n_classes: int) -> Cascade:
        stages, output = self.stages(self.settings.cut)
        losses = [*(LocalCrossEntropy() for _ in stages[:-1]), LocalCrossEntropy(output)]
        blocks = [Block(nn.Identity(), loss, front=stage) for stage, loss in zip(stages, losses, strict=True)]
        readouts = class_score_readouts(self.settings.readout)
        return Cascade(blocks, readouts, source=self.net if self.settings.readout == "last" else None)

    @property
    def locality(self) -> str:
        return "L2"
