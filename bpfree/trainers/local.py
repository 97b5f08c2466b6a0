"""Blocks that each classify, or follow any registered local loss: Mono-Forward and its kin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge
from torch import nn

from bpfree._errors import BadValue
from bpfree.core.block import BaseBlock, Block
from bpfree.core.cascade import Cascade
from bpfree.core.localize import Output, localize
from bpfree.core.readouts import ReadoutName, make_readouts
from bpfree.core.rule_names import RuleName, make_rule
from bpfree.core.stacked import stacked
from bpfree.encodings.label_overlay import Overlay
from bpfree.engine.settings import TrainerSettings
from bpfree.losses import LocalCrossEntropy, LocalLoss
from bpfree.losses.cross_entropy import FEATURES
from bpfree.trainers.base import Trainer, bodies, level_of

HeadPool = Annotated[int, Ge(1)] | None
HeadFeatures = Annotated[int, Ge(1)] | None


@dataclass(frozen=True, kw_only=True)
class LocalSettings(TrainerSettings):
    """Settings of `Local`.

    Attributes:
        loss: Name of the local loss, see `bpfree.register_loss` and `bpfree.localize`; a cascade that was cut
            already keeps its own.
        loss_options: Options of the loss, by name; those of its constructor.
        output: What becomes of the network's output layer: the head of the last block (``joined``), a block
            of its own above blocks that all have the loss (``apart``), or nothing (``none``).
        readout: The prediction rule.
        overlay: Where a loss that learns from right and wrong labels is shown them, as in `ForwardForward`.
    """

    loss: str = "mono_forward"
    loss_options: dict[str, Any] = field(default_factory=dict)
    output: Output = "joined"
    readout: ReadoutName = "last"
    overlay: Overlay = "auto"


def local_heads(n: int, pool: int | None, features: int | None) -> list[LocalLoss]:
    """Mono-Forward's losses of ``n`` blocks, each with a projection of its own."""
    return [LocalCrossEntropy(pool=pool, pooling="average", features=features) for _ in range(n)]


class Local(Trainer):
    """Trains every block by a registered local loss, in the cascade that `bpfree.localize` makes.

    The last block is headed by the network's output layer, under cross-entropy, if the loss leaves it one and
    ``output`` says nothing else.
    """

    id = "local"
    Settings = LocalSettings
    settings: LocalSettings

    def make_cascade(self, n_classes: int) -> Cascade:
        s = self.settings
        if isinstance(self.net, Cascade):
            return self.net.lead(s.readout)
        return localize(self.net, s.loss, s.cut, s.readout, s.loss_options, s.output, s.overlay)

    @property
    def locality(self) -> str:
        autograd = any(block.rule.autograd for block in self.cascade.units)
        return level_of(bodies(self.cascade.units), "L2" if autograd else "L3")


@dataclass(frozen=True, kw_only=True)
class MonoForwardSettings(TrainerSettings):
    """Settings of Mono-Forward.

    Attributes:
        readout: The prediction rule: the last block's scores, or the sum of all blocks' scores or
            probabilities, or block k's. Accuracy under the others is reported beside it.
        head_pool: Side of the map that convolutional outputs are averaged to in front of the local heads,
            which are the smaller for it; 1: a global average; None: no smaller than ``head_features`` asks.
        head_features: Largest number of features of a local head where ``head_pool`` is None: larger maps are
            averaged until they have as many; None: any number.
        gradients: ``autograd``; ``analytic`` takes the closed form of each step (multilayer perceptrons);
            ``stacked`` takes it for all equal neighbouring blocks at once, see `bpfree.core.stacked`.
    """

    readout: ReadoutName = "last"
    head_pool: HeadPool = None
    head_features: HeadFeatures = FEATURES
    gradients: Literal["autograd", "analytic", "stacked"] = "autograd"


class MonoForward(Trainer):
    """Each block classifies by a projection of its own (Gong et al., arXiv 2501.09238).

    The network's output layer is the projection of the last block; the others get one without bias.
    """

    id = "mono_forward"
    Settings = MonoForwardSettings
    settings: MonoForwardSettings

    def make_cascade(self, n_classes: int) -> Cascade:
        stacks = self.settings.gradients == "stacked"
        gradients: RuleName = "autograd" if self.settings.gradients == "autograd" else "analytic"
        if isinstance(self.net, Cascade) and not stacks:
            for block in self.net.units:
                if isinstance(block, Block) and not block.rule.one_pass:
                    block.rule = make_rule(gradients)
            return self.net.lead(self.settings.readout)
        s = self.settings
        stages, output = self.stages(s.cut)
        losses = [*local_heads(len(stages) - 1, s.head_pool, s.head_features), LocalCrossEntropy(output)]
        blocks = [
            Block(stage, loss, rule=make_rule(gradients)) for stage, loss in zip(stages, losses, strict=True)
        ]
        units: Sequence[BaseBlock] = self._stacked(blocks) if stacks else blocks
        readouts = make_readouts(self.settings.readout, losses)
        return Cascade(units, readouts, source=self.net if self.settings.readout == "last" else None)

    def _stacked(self, blocks: list[Block]) -> Sequence[BaseBlock]:
        found = stacked(blocks)
        if len(found) == len(blocks):
            raise BadValue(
                "gradients = 'stacked': no two neighbouring blocks are alike, a square linear layer and "
                "ReLU, ELU or Tanh, below the one that the output layer heads; use 'analytic' or 'autograd'"
            )
        if self.settings.schedule == "greedy":
            raise BadValue(
                "gradients = 'stacked': stacked blocks learn at once; use schedule = 'simultaneous'"
            )
        return found

    @property
    def locality(self) -> str:
        best = "L2" if self.settings.gradients == "autograd" else "L3"
        return level_of(bodies(self.cascade.units), best)


@dataclass(frozen=True, kw_only=True)
class RandomFeaturesSettings(TrainerSettings):
    """Settings of the random-features control.

    Attributes:
        readout: The prediction rule, as in Mono-Forward.
        head_pool: As in Mono-Forward.
        head_features: As in Mono-Forward.
    """

    readout: ReadoutName = "last"
    head_pool: HeadPool = None
    head_features: HeadFeatures = FEATURES


class RandomFeatures(Trainer):
    """Mono-Forward's heads on blocks that keep their random weights: what the heads can do alone.

    Every stage is a fixed front.
    """

    id = "random_features"
    Settings = RandomFeaturesSettings
    settings: RandomFeaturesSettings

    def make_cascade(self, n_classes: int) -> Cascade:
        s = self.settings
        stages, output = self.stages(s.cut)
        losses = [*local_heads(len(stages) - 1, s.head_pool, s.head_features), LocalCrossEntropy(output)]
        blocks = [Block(nn.Identity(), loss, front=stage) for stage, loss in zip(stages, losses, strict=True)]
        readouts = make_readouts(self.settings.readout, losses)
        return Cascade(blocks, readouts, source=self.net if self.settings.readout == "last" else None)

    @property
    def locality(self) -> str:
        return "L2"
