"""Backpropagation and deep supervision: the baselines, as cascades of one block."""

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
    """The whole network as one block with its own output layer: ordinary backpropagation."""

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
        aux_weight: Weight of every auxiliary loss; the output's weight is 1.
        head_pool: As in Mono-Forward.
        head_features: As in Mono-Forward.
    """

    aux_weight: Annotated[float, Ge(0)] = 1.0
    head_pool: HeadPool = None
    head_features: HeadFeatures = FEATURES


class DeepSupervision(Trainer):
    """Backpropagation with Mono-Forward's heads beside the output layer, no wall between the blocks.

    ``CE(output(a_L)) + w * sum_{i=1..L} CE(M_i a_i)``, read out at the output layer.
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
    """Mono-Forward without its walls: the same heads and losses, one backward pass through all blocks.

    ``CE(M_L a_L) + w * sum_{i<L} CE(M_i a_i)``; with w = 1 it differs from simultaneous Mono-Forward in the
    detach alone.
    """

    id = "mf_joint"
    # With another aux_weight it would no longer be Mono-Forward but for its walls.
    space: ClassVar[Space] = STEPS

    def make_cascade(self, n_classes: int) -> Cascade:
        s = self.settings
        stages, output = self.stages(s.cut)
        losses = [*local_heads(len(stages) - 1, s.head_pool, s.head_features), LocalCrossEntropy(output)]
        blocks = [Block(stage, loss) for stage, loss in zip(stages, losses, strict=True)]
        joint = JointBlock(blocks, self._weights(blocks))
        return Cascade([joint], make_readouts("last", joint.losses), source=self.net)
