"""What a user has frozen, and put into evaluation mode, is left alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from bpfree import Backprop, BadValue, CascadedForward, ForwardForward, Local, MonoForward, RandomFeatures
from bpfree.testing import assert_locality
from bpfree.trainers import Trainer
from tests.helpers import CLASSES, PLAIN_TRAINERS, easy, images, make_cnn, make_mlp, snapshot

every = pytest.mark.parametrize("kind", PLAIN_TRAINERS.values(), ids=PLAIN_TRAINERS.keys())


@every
@pytest.mark.parametrize("schedule", ["simultaneous", "greedy"])
@pytest.mark.parametrize("number", [1, 3])
def test_a_frozen_hidden_layer_keeps_every_bit(kind: type[Trainer], schedule: str, number: int) -> None:
    if kind.id == "counter_current" and schedule == "greedy":
        pytest.skip("messages need all blocks")
    net = make_mlp(16, 16)
    net[number].requires_grad_(False)
    before = snapshot(net)
    trainer = kind(net, progress=False, schedule=schedule)
    trainer.fit(easy(), easy(), epochs=1)
    moved = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not moved & {f"{number}.weight", f"{number}.bias"}
    if kind not in (CascadedForward, RandomFeatures):
        assert f"{4 - number}.weight" in moved
    if schedule == "simultaneous":
        assert_locality(trainer, easy().x, easy().y)


@every
def test_a_frozen_network_leaves_heads_to_train_or_is_refused(kind: type[Trainer]) -> None:
    net = make_mlp(16, 16).requires_grad_(False)
    before = snapshot(net)
    trainer = kind(net, progress=False)
    if kind.id in ("backprop", "dfa"):
        with pytest.raises(BadValue, match="nothing to train: every parameter of the network is frozen"):
            trainer.fit(easy(), epochs=1)
        return
    trainer.fit(easy(), easy(), epochs=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert_locality(trainer, easy().x, easy().y)


def test_goodness_blocks_that_are_all_frozen_have_nothing_to_train() -> None:
    net = make_mlp().requires_grad_(False)
    with pytest.raises(BadValue, match="nothing to train"):
        Local(net, loss="goodness", overlay="force", progress=False).fit(easy(), epochs=1)


@pytest.mark.parametrize("kind", [MonoForward, Backprop, CascadedForward, RandomFeatures])
def test_a_frozen_norm_in_evaluation_mode_keeps_its_statistics(kind: type[Trainer]) -> None:
    net = make_cnn(batch_norm=True)
    net[1].requires_grad_(False).eval()
    with torch.no_grad():
        net[1].running_mean.fill_(0.25)  # type: ignore[union-attr]
    kept, other = snapshot(net[1]), snapshot(net[5])
    trainer = kind(net, progress=False)
    trainer.fit(images(), images(), epochs=1)
    trainer.step(*images().batch(torch.arange(8)))
    assert all(torch.equal(tensor, kept[name]) for name, tensor in net[1].state_dict().items())
    assert not torch.equal(net[5].running_mean, other["running_mean"])  # type: ignore[arg-type]


def test_a_norm_that_is_only_frozen_or_only_in_evaluation_mode_trains_as_before() -> None:
    for freeze in (True, False):
        net = make_cnn(batch_norm=True)
        _ = net[1].requires_grad_(False) if freeze else net[1].eval()
        MonoForward(net, progress=False).fit(images(), epochs=1)
        assert net[1].running_mean.abs().max() > 0  # type: ignore[union-attr, operator]


class Counting(nn.Dropout):
    """Notes the modes in which it was called with a graph above it."""

    def __init__(self) -> None:
        super().__init__(0.5)
        self.modes: set[bool] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.modes.add(self.training)
        return super().forward(x)


@pytest.mark.parametrize("container", [True, False])
def test_dropout_of_a_stage_that_is_frozen_in_evaluation_mode_stays_off(container: bool) -> None:
    still, live = Counting(), Counting()
    frozen = (
        nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), still).requires_grad_(False).eval()
    )
    rest = (nn.Linear(16, 16), nn.ReLU(), live, nn.Linear(16, CLASSES))
    net = nn.Sequential(frozen, *rest) if container else nn.Sequential(*frozen, *rest)
    before = snapshot(frozen)
    MonoForward(net, progress=False).fit(easy(), epochs=1)
    assert (still.modes, live.modes) == ({False}, {False, True})
    assert all(torch.equal(tensor, before[name]) for name, tensor in frozen.state_dict().items())


def test_a_net_that_is_in_evaluation_mode_as_a_whole_trains() -> None:
    nets = [make_cnn(batch_norm=True) for _ in range(2)]
    for net in (nets[0].eval(), nets[1]):
        MonoForward(net, progress=False).fit(images(), epochs=1)
    theirs = nets[1].state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in nets[0].state_dict().items())


# ---- Forward-Forward's initialization --------------------------------------------------------------------


def test_forward_forward_warns_once_before_it_draws_trained_weights_anew() -> None:
    net = make_mlp(16, 16)
    Backprop(net, progress=False).fit(easy(), epochs=5)
    kept = copy.deepcopy(net)
    trainer = ForwardForward(net, progress=False)
    with pytest.warns(
        UserWarning, match=r"init = 'unit' draws the weights of 1, 3 anew.*init = 'torch'"
    ) as told:
        trainer.fit(easy(), epochs=1)
    assert len(told) == 1
    trainer.fit(easy(), epochs=1)
    # As torch drew them, or kept by init = 'torch', or about to be loaded: no warning.
    ForwardForward(make_mlp(16, 16), progress=False).fit(easy(), epochs=1)
    ForwardForward(kept, init="torch", progress=False).fit(easy(), epochs=1)


def test_a_frozen_layer_is_not_drawn_anew() -> None:
    net = make_mlp(16, 16)
    net[1].requires_grad_(False)
    before = snapshot(net)
    trainer = ForwardForward(net, progress=False)
    trainer.build((12,), CLASSES)
    assert torch.equal(net[1].weight, before["1.weight"])  # type: ignore[arg-type]
    assert not torch.equal(net[3].weight, before["3.weight"])  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [MonoForward, Backprop, CascadedForward])
def test_a_norm_without_parameters_that_was_put_into_evaluation_mode_keeps_its_statistics(
    kind: type[Trainer],
) -> None:
    net = nn.Sequential(nn.BatchNorm1d(12, affine=False), *make_mlp())
    net[0].eval()
    before = net[0].running_mean.clone()  # type: ignore[operator, union-attr]
    trainer = kind(net, progress=False)
    for _ in range(2):
        trainer.fit(easy(), epochs=1)
    assert torch.equal(net[0].running_mean, before)  # type: ignore[arg-type]
    training = nn.Sequential(nn.BatchNorm1d(12, affine=False), *make_mlp())
    other = kind(training, progress=False)
    other.fit(easy(), epochs=1)
    assert not torch.equal(training[0].running_mean, before)  # type: ignore[arg-type]
