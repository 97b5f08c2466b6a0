"""The baselines: backpropagation and deep supervision, as cascades of one block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge
from torch import nn

from bpfree.core.block import Block
from bpfree.core.cascade import Cascade
from bpfree.core.joint import JointBlock
from bpfree.core.readouts import BlockReadout, make_readouts
from bpfree.engine.settings import TrainerSettings
from bpfree.losses import LocalCrossEntropy
from bpfree.losses.cross_entropy import FEATURES
from bpfree.trainers.base import Trainer, level_of
from bpfree.trainers.local import HeadFeatures, HeadPool, local_heads
from bpfree.trainers.space import STEPS, Range, Space


class Backprop(Trainer):
    """Ordinary backpropagation: the whole network is one block, and its output layer is the head."""

    id = "backprop"

    def make_cascade(self, n_classes: int) -> Cascade:
        stages, output = self.stages(self.settings.cut)
        block = Block(
            nn.Sequential(*(layer for stage in stages for layer in stage)), LocalCrossEntropy(output)
        )
        return Cascade([block], {"last": BlockReadout()}, source=self.net)

    @property
    def locality(self) -> str:
        return level_of([nn.ModuleList(self.stages(self.settings.cut)[0])])


@dataclass(frozen=True, kw_only=True)
class DeepSupervisionSettings(TrainerSettings):
    """Settings of deep supervision.

    Attributes:
        aux_weight: Weight of every auxiliary loss. The loss of the output layer has weight 1.
        head_pool: As in Mono-Forward.
        head_features: As in Mono-Forward.
    """

    aux_weight: Annotated[float, Ge(0)] = 1.0
    head_pool: HeadPool = None
    head_features: HeadFeatures = FEATURES


class DeepSupervision(Trainer):
    """Backpropagation with Mono-Forward's heads in addition to the output layer.

    The loss is ``CE(output(a_L)) + w * sum_{i=1..L} CE(M_i a_i)``. The output layer predicts.
    """

    id = "backprop_ds"
    Settings = DeepSupervisionSettings
    space: ClassVar[Space] = {**STEPS, "aux_weight": Range(1e-2, 3.0, log=True)}
    settings: DeepSupervisionSettings

    def make_cascade(self, n_classes: int) -> Cascade:
        s = self.settings
        stages, output = self.stages(s.cut)
        heads = local_heads(len(stages), s.head_pool, s.head_features)
        blocks = [Block(stage, head) for stage, head in zip(stages, heads, strict=True)]
        blocks.append(Block(nn.Identity(), LocalCrossEntropy(output)))
        joint = JointBlock(blocks, self._weights(blocks))
        return Cascade([joint], make_readouts("last", joint.losses), source=self.net)

    def _weights(self, blocks: Sequence[Block]) -> list[float]:
        return [self.settings.aux_weight] * (len(blocks) - 1) + [1.0]

    @property
    def locality(self) -> str:
        return level_of([nn.ModuleList(self.stages(self.settings.cut)[0])])


class MFJoint(DeepSupervision):
    """Mono-Forward without block boundaries: the same heads and losses, one backward pass through all blocks.

    The loss is ``CE(M_L a_L) + w * sum_{i<L} CE(M_i a_i)``. With w = 1 the only difference from simultaneous
    Mono-Forward is that activations are not detached.
    """

    id = "mf_joint"
    # With another aux_weight the losses would not be those of Mono-Forward.
    space: ClassVar[Space] = STEPS

    def make_cascade(self, n_classes: int) -> Cascade:
        s = self.settings
        stages, output = self.stages(s.cut)
        losses = [*local_heads(len(stages) - 1, s.head_pool, s.head_features), LocalCrossEntropy(output)]
        blocks = [Block(stage, loss) for stage, loss in zip(stages, losses, strict=True)]
        joint = JointBlock(blocks, self._weights(blocks))
        return Cascade([joint], make_readouts("last", joint.losses), source=self.net)
