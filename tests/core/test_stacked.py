"""Stacked blocks against the same blocks one by one, and the stacks against what is done to their layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bpfree import BadValue, MonoForward
from bpfree.core.joint import JointBlock
from bpfree.core.stacked import Stacked
from tests.helpers import CLASSES, make_cnn, make_mlp, snapshot, vectors


def built(gradients: str, **options: Any) -> MonoForward:
    net = make_mlp(16, 16, 16, 16, 16, **options)
    trainer = MonoForward(net, gradients=gradients, optimizer="adam", lr=0.01, progress=False)
    trainer.build((12,), CLASSES)
    return trainer


def batch(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    return vectors(24, seed=number).batch(torch.arange(24))


@pytest.mark.parametrize("activation", ["relu", "tanh", "elu"])
@pytest.mark.parametrize("bias", [True, False])
def test_stacked_blocks_have_the_weights_of_separate_blocks(activation: str, bias: bool) -> None:
    together, apart = (built(g, activation=activation, bias=bias) for g in ("stacked", "analytic"))
    assert [isinstance(block.rule, Stacked) for block in together.cascade.units] == [False, True, False]
    assert len(together.cascade.units[1].parts) == 3  # type: ignore[attr-defined]
    for number in range(8):
        losses = [torch.stack(t.step(*batch(number), number)) for t in (together, apart)]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(together.net.parameters(), apart.net.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    x = batch(9)[0]
    torch.testing.assert_close(together.model(x), apart.model(x), rtol=1e-3, atol=1e-4)


def test_the_optimizer_has_stacked_tensors_and_the_state_dict_those_of_layers() -> None:
    trainer = built("stacked")
    stack = trainer.cascade.units[1]
    assert isinstance(stack, JointBlock)
    assert [tuple(p.shape) for p in stack.trainable()] == [(3, 16, 16), (3, CLASSES, 16), (3, 16)]
    assert len(trainer.optimizers["block1"].param_groups[0]["params"]) == 3
    assert not any("_stacks" in name for name in trainer.cascade.state_dict())


def test_copied_and_loaded_layers_are_trained(tmp_path: Any) -> None:
    trainer = built("stacked")
    for number in range(3):
        trainer.step(*batch(number), number)
    trainer.save(tmp_path / "weights.safetensors")
    twin, loaded = trainer.clone(), built("stacked")
    loaded.load(tmp_path / "weights.safetensors")
    before = snapshot(trainer.cascade)
    for other in (twin, loaded):
        for name, tensor in snapshot(other.cascade).items():
            assert torch.equal(tensor, before[name])
    twin.step(*batch(4), 4)
    assert all(torch.equal(t, before[name]) for name, t in snapshot(trainer.cascade).items())
    trainer.step(*batch(4), 4)
    for name, tensor in snapshot(twin.cascade).items():
        assert torch.equal(tensor, snapshot(trainer.cascade)[name])
    loaded.step(*batch(4), 4)
    after = snapshot(loaded.cascade)
    assert not any(torch.equal(after[name], before[name]) for name in before)


def test_blocks_do_not_depend_on_blocks_above() -> None:
    trainers = built("stacked"), built("stacked")
    stacks = [trainer.cascade.units[1] for trainer in trainers]
    assert all(isinstance(stack.rule, Stacked) for stack in stacks)
    with torch.no_grad():
        for p in stacks[1].parts[2].parameters():  # type: ignore[attr-defined]
            p.mul_(-3.0)
    for trainer in trainers:
        trainer.step(*batch(0), 0)
    for k in range(3):
        ours, theirs = (snapshot(stack.parts[k]) for stack in stacks)  # type: ignore[attr-defined]
        assert all(torch.equal(ours[name], theirs[name]) == (k < 2) for name in ours)


def test_a_replaced_layer_is_trained_and_a_frozen_layer_is_refused() -> None:
    trainer = built("stacked")
    trainer.step(*batch(0), 0)
    upper = [m for m in trainer.net if isinstance(m, torch.nn.Linear)][2]
    upper.weight = torch.nn.Parameter(torch.full((16, 16), 0.1))
    trainer.step(*batch(1), 1)
    assert not torch.equal(upper.weight, torch.full((16, 16), 0.1))
    upper.weight.requires_grad_(False)
    with pytest.raises(BadValue, match="is frozen"):
        trainer.reset_optimizers()
    fresh = MonoForward(trainer.net, gradients="stacked", progress=False)
    with pytest.raises(BadValue, match="expected neighboring blocks"):
        fresh.build((12,), CLASSES)


@pytest.mark.parametrize(
    ("net", "settings", "message"),
    [
        (lambda: make_mlp(16, 16), {}, "expected neighboring blocks"),
        (make_cnn, {"cut": 2}, "expected neighboring blocks"),
        (lambda: make_mlp(16, 16, 16, 16), {"schedule": "greedy"}, "schedule = 'simultaneous'"),
    ],
)
def test_blocks_that_cannot_be_stacked_are_refused(net: Any, settings: Any, message: str) -> None:
    trainer = MonoForward(net(), gradients="stacked", progress=False, **settings)
    with pytest.raises(BadValue, match=message):
        trainer.build((1, 8, 8) if net is make_cnn else (12,), CLASSES)
