"""`check_local_loss` accepts valid losses, and raises an error for others."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfree import BadValue, register_loss
from bpfree.losses import LocalCrossEntropy, LocalLoss, loss_names
from bpfree.testing import check_local_loss
from tests.helpers import make_cnn


@register_loss("tests.prototypes")
class Prototypes(LocalLoss):
    """Distance to a learned point per class: a user's loss with scores."""

    def build(self, output: Tensor, n_classes: int) -> None:
        self.points = nn.Parameter(torch.randn(n_classes, output[0].numel()))

    def scores(self, output: Tensor) -> Tensor:
        return -torch.cdist(output.flatten(1), self.points)

    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        return F.cross_entropy(self.scores(output), target)


@register_loss("tests.spread")
class Spread(LocalLoss):
    """A loss without scores and parameters, which does not use labels."""

    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        return output.square().mean() - output.var()


@pytest.mark.parametrize("name", ["tests.prototypes", "tests.spread"])
def test_a_users_loss_passes_all_checks(name: str) -> None:
    assert name in loss_names()
    check_local_loss(name)


def test_another_network_can_be_given() -> None:
    check_local_loss("mono_forward", make_cnn(), (1, 8, 8))


class Broken(LocalCrossEntropy):
    """A loss with a valid head."""


@register_loss("tests.vector")
class Vector(Broken):
    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        return F.cross_entropy(self.scores(output), target, reduction="none")


@register_loss("tests.wide")
class WideScores(Broken):
    def scores(self, output: Tensor) -> Tensor:
        return super().scores(output)[:, :2]

    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        return F.cross_entropy(super().scores(output), target)


@register_loss("tests.counting")
class Counting(Broken):
    calls: Tensor

    def build(self, output: Tensor, n_classes: int) -> None:
        super().build(output, n_classes)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        self.calls += 1
        return super().forward(output, target)


@register_loss("tests.random")
class Drawing(Broken):
    stream = torch.Generator().manual_seed(0)

    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        return super().forward(output, target) * (1 + torch.rand((), generator=self.stream))


@register_loss("tests.forgetful")
class Forgetful(Broken):
    """A loss whose state is not in checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = itertools.count(1)

    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        return super().forward(output, target) / next(self.steps)


_SHARED = nn.Parameter(torch.ones(()))


@register_loss("tests.detached")
class Detached(LocalLoss):
    def build(self, output: Tensor, n_classes: int) -> None:
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        return output.detach().mean() + 0.0 * _SHARED


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tests.vector", r"returned shape \[\d+\]: expected a scalar"),
        ("tests.wide", r"returns scores \[40, 2\]; expected \[40, 3\] or None"),
        ("tests.counting", "changes calls in evaluation mode"),
        ("tests.random", "loss 1 of step 1|two runs"),
        ("tests.forgetful", "interrupted after write"),
        ("tests.detached", "loss of block 1 reaches no parameter of block 1"),
    ],
)
def test_an_invalid_loss_raises_an_error(name: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_local_loss(name)


def test_an_unknown_loss_raises_an_error() -> None:
    with pytest.raises(BadValue, match=r"unknown local loss 'tests\.nothing'"):
        check_local_loss("tests.nothing")


@pytest.mark.parametrize("name", ["predsim", "mean_goodness", "prototype_goodness"])
def test_losses_of_convolutional_networks_pass_all_checks(name: str) -> None:
    check_local_loss(name, make_cnn(), (1, 8, 8))
