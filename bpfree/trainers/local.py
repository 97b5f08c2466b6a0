"""Blocks with a local classifier, or any other local loss: Mono-Forward, `Local`, random features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge
from torch import nn

from bpfree._errors import BadValue
from bpfree._types import JsonObject
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
        loss: Name of the local loss, see `bpfree.register_loss` and `bpfree.localize`. It cannot be given
            with a `Cascade`, which has its losses.
        loss_options: Options of the loss, by name: the arguments of its constructor.
        output: Use of the network's output layer: it is the head of the last block (``joined``), a separate
            block above blocks that all have the loss (``apart``), or not used (``none``).
        readout: The prediction rule.
        overlay: Where labels are added to samples, for a loss with positive and negative samples, as in
            `ForwardForward`.
    """

    loss: str = "mono_forward"
    loss_options: JsonObject = field(default_factory=dict)
    output: Output = "joined"
    readout: ReadoutName = "last"
    overlay: Overlay = "auto"


def local_heads(n: int, pool: int | None, features: int | None) -> list[LocalLoss]:
    """The losses of ``n`` blocks in Mono-Forward, each with its own projection."""
    return [LocalCrossEntropy(pool=pool, pooling="average", features=features) for _ in range(n)]


class Local(Trainer):
    """Trains every block by a registered local loss, in the cascade that `bpfree.localize` returns.

    With the default ``output``, the network's output layer is the head of the last block, with cross-entropy,
    unless the loss has no use for an output layer.
    """

    id = "local"
    Settings = LocalSettings
    settings: LocalSettings

    def make_cascade(self, n_classes: int) -> Cascade:
        s = self.settings
        if isinstance(self.net, Cascade):
            return self.net.set_headline(s.readout)
        return localize(self.net, s.loss, s.cut, s.readout, s.loss_options, s.output, s.overlay)

    @property
    def locality(self) -> str:
        autograd = any(block.rule.autograd for block in self.cascade.units)
        return level_of(bodies(self.cascade.units), "L2" if autograd else "L3")


@dataclass(frozen=True, kw_only=True)
class MonoForwardSettings(TrainerSettings):
    """Settings of Mono-Forward.

    Attributes:
        readout: The prediction rule: the scores of the last block, the sum of the scores or probabilities of
            all blocks, or the scores of block k. Accuracy of the other readouts is reported too.
        head_pool: Side of the map that convolutional outputs are averaged to before the local heads, which
            makes these smaller; 1: a global average; None: see ``head_features``.
        head_features: Largest number of features of a local head if ``head_pool`` is None. Larger maps are
            averaged to smaller ones. None: no limit.
        gradients: ``autograd``; ``analytic`` for closed-form gradients (MLPs); ``stacked`` for closed-form
            gradients of all equal neighboring blocks at once, see `bpfree.core.stacked`.
    """

    readout: ReadoutName = "last"
    head_pool: HeadPool = None
    head_features: HeadFeatures = FEATURES
    gradients: Literal["autograd", "analytic", "stacked"] = "autograd"


class MonoForward(Trainer):
    """Each block is trained by the cross-entropy of its own projection (Gong et al., arXiv 2501.09238).

    The network's output layer is the projection of the last block. The other projections have no bias.
    """

    id = "mono_forward"
    Settings = MonoForwardSettings
    settings: MonoForwardSettings

    def make_cascade(self, n_classes: int) -> Cascade:
        is_stacked = self.settings.gradients == "stacked"
        gradients: RuleName = "autograd" if self.settings.gradients == "autograd" else "analytic"
        if isinstance(self.net, Cascade) and not is_stacked:
            for block in self.net.units:
                if isinstance(block, Block) and not block.rule.one_pass:
                    block.rule = make_rule(gradients)
            return self.net.set_headline(self.settings.readout)
        s = self.settings
        stages, output = self.stages(s.cut)
        losses = [*local_heads(len(stages) - 1, s.head_pool, s.head_features), LocalCrossEntropy(output)]
        blocks = [
            Block(stage, loss, rule=make_rule(gradients)) for stage, loss in zip(stages, losses, strict=True)
        ]
        units: Sequence[BaseBlock] = self._stacked(blocks) if is_stacked else blocks
        readouts = make_readouts(self.settings.readout, losses)
        return Cascade(units, readouts, source=self.net if self.settings.readout == "last" else None)

    def _stacked(self, blocks: list[Block]) -> Sequence[BaseBlock]:
        units = stacked(blocks)
        if len(units) == len(blocks):
            raise BadValue(
                "gradients = 'stacked': expected neighboring blocks, below the last one, that are equal and "
                "consist of a square linear layer and ReLU, ELU or Tanh; use 'analytic' or 'autograd'"
            )
        if self.settings.schedule == "greedy":
            raise BadValue(
                "gradients = 'stacked' with schedule = 'greedy': stacked blocks are trained at the same "
                "time; use schedule = 'simultaneous'"
            )
        return units

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
    """A control: Mono-Forward's heads are trained on blocks with fixed random weights.

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
