"""Direct feedback alignment (Nøkland, arXiv 1609.01596)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from bpfree.core.block import Block
from bpfree.core.cascade import Cascade
from bpfree.core.joint import JointBlock
from bpfree.core.readouts import BlockReadout
from bpfree.engine.settings import TrainerSettings
from bpfree.losses import DirectFeedback, LocalCrossEntropy
from bpfree.trainers.base import Trainer, level_of

LastBlock = Literal["exact", "feedback"]


class DirectFeedbackBlock(JointBlock):
    """Blocks without gradients between them; the feedback of all is the error of the top one on the batch.

    One forward pass and one step for all, so normalization layers see each batch once.
    """

    def inner_feedback(self, outputs: list[Tensor], target: Tensor) -> list[Tensor | None]:
        return [self.error(outputs[-1], target)] * len(outputs)

    def error(self, output: Tensor, target: Tensor) -> Tensor:
        """``softmax(scores) - one-hot`` of the top block's output, ``[rows, C]``, without a graph."""
        with torch.no_grad():
            scores = self.losses[-1].scores(output)
            assert scores is not None
            return scores.softmax(1) - F.one_hot(target, scores.shape[1])


@dataclass(frozen=True, kw_only=True)
class DirectFeedbackSettings(TrainerSettings):
    """Settings of direct feedback alignment.

    Attributes:
        last_block: ``exact``: the last stage takes the gradient of the output layer's cross-entropy, which is
            local to it; ``feedback``: a random matrix, as the others.
        feedback_seed: Seed of the random matrices.
    """

    last_block: LastBlock = "exact"
    feedback_seed: Annotated[int, Ge(0)] = 0


class DirectFeedbackAlignment(Trainer):
    """Each stage follows the output's error through a fixed random matrix of its own.

    The output layer learns by cross-entropy; nothing is propagated backwards.
    """

    id = "dfa"
    Settings = DirectFeedbackSettings
    settings: DirectFeedbackSettings

    def make_cascade(self, n_classes: int) -> Cascade:
        stages, output = self.stages(self.settings.cut)
        if self.settings.last_block == "feedback":
            stages.append(nn.Sequential(nn.Identity()))
        seed = self.settings.feedback_seed
        blocks = [Block(stage, DirectFeedback(seed, k)) for k, stage in enumerate(stages[:-1])]
        blocks.append(Block(stages[-1], LocalCrossEntropy(output)))
        joint = DirectFeedbackBlock(blocks, [1.0] * len(blocks), detach=True)
        return Cascade([joint], {"last": BlockReadout()}, source=self.net)

    @property
    def locality(self) -> str:
        stages, _ = self.stages(self.settings.cut)
        # With feedback for the last stage too, the output layer is a block above it.
        above = [nn.Identity()] if self.settings.last_block == "feedback" else []
        return level_of([*stages, *above], "L1")

    def diagnose(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        """``feedback_cos``: cosine of each stage's teaching signal with the gradient that it stands for."""
        joint = self.cascade.units[0]
        assert isinstance(joint, DirectFeedbackBlock)
        outputs: list[Tensor] = []
        rows = x
        for block in joint.parts:
            rows = block(rows)
            # That of frozen stages has no graph: its gradient is asked for all the same.
            outputs.append(rows if rows.requires_grad else rows.requires_grad_())
        taught = outputs[:-1]
        if not taught:
            return {}
        grads = torch.autograd.grad(joint.losses[-1](outputs[-1], y), taught)
        error = joint.error(outputs[-1], y)
        deltas = [loss.delta(error) for loss in joint.losses if isinstance(loss, DirectFeedback)]
        pairs = zip(deltas, grads, strict=True)
        return {"feedback_cos": [F.cosine_similarity(d.flatten(), g.flatten(), 0).item() for d, g in pairs]}
