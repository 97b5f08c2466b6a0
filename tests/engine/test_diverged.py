"""A loss that gives 0 for outputs that are NaN does not hide them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfree import Diverged, Local, Trainer, register_loss
from bpfree.core.block import Block
from bpfree.core.cascade import Cascade
from bpfree.core.joint import JointBlock
from bpfree.core.readouts import BlockReadout
from bpfree.engine.selection import is_finite
from bpfree.losses import LocalCrossEntropy
from bpfree.testing import assert_nothing_fails_quietly
from tests.helpers import make_mlp, vectors


@register_loss("tests.margin")
class Margin(LocalCrossEntropy):
    """The multi-margin loss, which is 0 for NaN scores."""

    def objective(self, scores: Tensor, target: Tensor) -> Tensor:
        return F.multi_margin_loss(scores, target)


class Joint(Trainer):
    """Blocks under the margin loss in one joint block."""

    id, locality = "tests.joint", "L2"

    def make_cascade(self, n_classes: int) -> Cascade:
        stages, output = self.stages()
        losses = [Margin() for _ in stages[1:]] + [Margin(output)]
        inner = [Block(stage, loss) for stage, loss in zip(stages, losses, strict=True)]
        return Cascade([JointBlock(inner, [1.0] * len(inner), detach=True)], {"last": BlockReadout()})


def test_the_loss_does_hide_them() -> None:
    assert F.multi_margin_loss(torch.full((2, 3), math.nan), torch.tensor([0, 1])) == 0


def test_a_loss_that_hides_them_is_an_error_all_the_same() -> None:
    assert_nothing_fails_quietly(
        lambda **settings: Local(make_mlp(), loss="tests.margin", progress=False, **settings), vectors()
    )


@pytest.mark.parametrize("schedule", ["simultaneous", "greedy"])
@pytest.mark.parametrize("validation", [None, vectors(seed=1)])
def test_a_weight_that_is_nan_is_reported_by_block(schedule: Any, validation: Any) -> None:
    net = make_mlp(16, 16, 16)
    trainer = Local(net, loss="tests.margin", output="none", schedule=schedule, progress=False)
    trainer.build((12,), 3)
    part = "block 2, part 1 of 1" if schedule == "greedy" else "all blocks, part 2 of 3"
    with torch.no_grad():
        net[3].weight[0, 0] = math.nan
    with pytest.raises(Diverged, match=rf"weights of {part}, became NaN or infinite in epoch 1,"):
        trainer.fit(vectors(), validation, epochs=3)


def test_blocks_inside_a_joint_block_are_reported_by_number() -> None:
    net = make_mlp(16, 16, 16)
    with torch.no_grad():
        net[3].weight[0, 0] = math.inf
    with pytest.raises(Diverged, match="part 2 of 3"):
        Joint(net, progress=False).fit(vectors(), epochs=1)


def test_outputs_that_overflow_are_reported_though_all_weights_are_finite() -> None:
    net = make_mlp(16, 16)
    with torch.no_grad():
        net[1].weight.fill_(3e38)
    net[1].requires_grad_(False)
    with pytest.raises(Diverged, match="outputs or the weights of all blocks, part 1 of 2"):
        Local(net, loss="tests.margin", output="none", progress=False).fit(vectors(), epochs=1)


def test_statistics_of_a_normalization_are_checked_and_other_buffers_are_not() -> None:
    norm = nn.BatchNorm1d(3)
    norm.register_buffer("mask", torch.tensor(-math.inf))
    assert is_finite(norm)
    norm.running_var[1] = math.nan
    assert not is_finite(norm)
    assert is_finite(nn.BatchNorm1d(3, affine=False, track_running_stats=False))
