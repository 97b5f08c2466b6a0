"""Frozen layers, and frozen layers in evaluation mode, are not changed."""

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
        pytest.skip("feedback comes from all blocks")
    net = make_mlp(16, 16)
    net[number].requires_grad_(False)
    before = snapshot(net)
    trainer = kind(net, progress=False, schedule=schedule)
    trainer.fit(easy(), easy(), epochs=1)
    changed = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not changed & {f"{number}.weight", f"{number}.bias"}
    if kind not in (CascadedForward, RandomFeatures):
        assert f"{4 - number}.weight" in changed
    if schedule == "simultaneous":
        assert_locality(trainer, easy().x, easy().y)


@every
def test_only_heads_of_a_frozen_network_are_trained_or_it_is_refused(kind: type[Trainer]) -> None:
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


def test_goodness_blocks_that_are_all_frozen_are_refused() -> None:
    net = make_mlp().requires_grad_(False)
    with pytest.raises(BadValue, match="nothing to train"):
        Local(net, loss="goodness", overlay="force", progress=False).fit(easy(), epochs=1)


@pytest.mark.parametrize("kind", [MonoForward, Backprop, CascadedForward, RandomFeatures])
def test_a_frozen_norm_in_evaluation_mode_keeps_its_statistics(kind: type[Trainer]) -> None:
    net = make_cnn(batch_norm=True)
    net[1].requires_grad_(False).eval()
    with torch.no_grad():
        net.state_dict()["1.running_mean"].fill_(0.25)
    before, other = snapshot(net[1]), snapshot(net[5])
    trainer = kind(net, progress=False)
    trainer.fit(images(), images(), epochs=1)
    trainer.step(*images().batch(torch.arange(8)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net[1].state_dict().items())
    assert not torch.equal(net.state_dict()["5.running_mean"], other["running_mean"])


def test_a_norm_that_is_only_frozen_or_only_in_evaluation_mode_updates_its_statistics() -> None:
    for freeze in (True, False):
        net = make_cnn(batch_norm=True)
        _ = net[1].requires_grad_(False) if freeze else net[1].eval()
        MonoForward(net, progress=False).fit(images(), epochs=1)
        assert net.state_dict()["1.running_mean"].abs().max() > 0


class RecordingMode(nn.Dropout):
    """Records the modes in which it is called."""

    def __init__(self) -> None:
        super().__init__(0.5)
        self.modes: set[bool] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.modes.add(self.training)
        return super().forward(x)


@pytest.mark.parametrize("container", [True, False])
def test_dropout_of_a_frozen_stage_in_evaluation_mode_stays_off(container: bool) -> None:
    frozen_dropout, dropout = RecordingMode(), RecordingMode()
    frozen = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), frozen_dropout)
    frozen.requires_grad_(False).eval()
    trained = (nn.Linear(16, 16), nn.ReLU(), dropout, nn.Linear(16, CLASSES))
    net = nn.Sequential(frozen, *trained) if container else nn.Sequential(*frozen, *trained)
    before = snapshot(frozen)
    MonoForward(net, progress=False).fit(easy(), epochs=1)
    assert (frozen_dropout.modes, dropout.modes) == ({False}, {False, True})
    assert all(torch.equal(tensor, before[name]) for name, tensor in frozen.state_dict().items())


def test_a_network_in_evaluation_mode_is_trained() -> None:
    nets = [make_cnn(batch_norm=True) for _ in range(2)]
    for net in (nets[0].eval(), nets[1]):
        MonoForward(net, progress=False).fit(images(), epochs=1)
    expected = nets[1].state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in nets[0].state_dict().items())


# ---- Forward-Forward's initialization --------------------------------------------------------------------


def test_forward_forward_warns_once_before_it_replaces_trained_weights() -> None:
    net = make_mlp(16, 16)
    Backprop(net, progress=False).fit(easy(), epochs=5)
    trained = copy.deepcopy(net)
    trainer = ForwardForward(net, progress=False)
    with pytest.warns(
        UserWarning, match=r"init = 'unit' replaces the weights of 1, 3, .*init = 'torch'"
    ) as caught:
        trainer.fit(easy(), epochs=1)
    assert len(caught) == 1
    trainer.fit(easy(), epochs=1)
    # No warning with torch's default initialization, or with init = 'torch'.
    ForwardForward(make_mlp(16, 16), progress=False).fit(easy(), epochs=1)
    ForwardForward(trained, init="torch", progress=False).fit(easy(), epochs=1)


def test_a_frozen_layer_is_not_initialized() -> None:
    net = make_mlp(16, 16)
    net[1].requires_grad_(False)
    before = snapshot(net)
    trainer = ForwardForward(net, progress=False)
    trainer.build((12,), CLASSES)
    after = net.state_dict()
    assert torch.equal(after["1.weight"], before["1.weight"])
    assert not torch.equal(after["3.weight"], before["3.weight"])


@pytest.mark.parametrize("kind", [MonoForward, Backprop, CascadedForward])
def test_a_norm_without_parameters_in_evaluation_mode_keeps_its_statistics(
    kind: type[Trainer],
) -> None:
    net = nn.Sequential(nn.BatchNorm1d(12, affine=False), *make_mlp())
    net[0].eval()
    before = net.state_dict()["0.running_mean"].clone()
    trainer = kind(net, progress=False)
    for _ in range(2):
        trainer.fit(easy(), epochs=1)
    assert torch.equal(net.state_dict()["0.running_mean"], before)
    training = nn.Sequential(nn.BatchNorm1d(12, affine=False), *make_mlp())
    other = kind(training, progress=False)
    other.fit(easy(), epochs=1)
    assert not torch.equal(training.state_dict()["0.running_mean"], before)
