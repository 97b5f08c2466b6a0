"""Autoencoders: what is compared with what, who moves whom, and what is reported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import bpfree
from bpfree import Autoencoder, BadValue, testing
from bpfree.cascade import JointBlock
from bpfree.data import TensorData
from bpfree.losses import MapPair, Reconstruction

G = torch.Generator().manual_seed(0)
DATA = TensorData(torch.rand(40, 1, 9, 7, generator=G), torch.zeros(40, dtype=torch.long), 1)
X = DATA.x[:10]


def make(**settings: Any) -> Autoencoder:
    torch.manual_seed(0)
    net = bpfree.nn.autoencoder((1, 9, 7), (4, 6))
    return Autoencoder(net, progress=False, **settings)


def built(**settings: Any) -> Autoencoder:
    trainer = make(**settings)
    trainer.build((1, 9, 7), 1)
    return trainer


def test_the_net_gives_images_back_and_starts_at_zero() -> None:
    net = bpfree.nn.autoencoder((3, 9, 7), (4, 6))
    shapes, x = [], torch.rand(2, 3, 9, 7)
    for stage in net:
        x = stage(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(4, 5, 4), (6, 3, 2), (4, 5, 4), (3, 9, 7)]
    assert torch.equal(x, net[-1][-1].bias.view(1, 3, 1, 1).expand_as(x))


def test_each_stage_is_compared_with_a_pass_from_the_image_down() -> None:
    joint = built().cascade.units[0]
    assert isinstance(joint, JointBlock)
    joint.train()
    losses, _ = joint.objective(X, X, None)
    maps, expected = X, []
    for loss in joint.losses[-2::-1]:
        assert isinstance(loss, MapPair)
        maps = loss.feedback(maps)
        expected.insert(0, maps)
    a = X
    for block, b, found in zip(joint.inner, expected, losses, strict=False):
        a = block.body(a)
        parts = []
        for one, other in zip(a.flatten(0, 1), b.flatten(0, 1), strict=True):
            shapes = [(m - m.mean()) / ((m - m.mean()).norm() + 1e-8) for m in (one, other)]
            parts.append((one - other).square().mean() + (shapes[0] - shapes[1]).square().mean())
        torch.testing.assert_close(found, a.shape[2] * torch.stack(parts).mean())
    torch.testing.assert_close(losses[-1], 9 * F.mse_loss(joint.inner[-1].body(a), X))


def test_no_gradient_crosses_a_wall() -> None:
    trainer = make()
    testing.assert_local(trainer, X, DATA.y[:10])
    assert trainer.locality == "L2"
    testing.assert_locality(make(rule="backprop"), X, DATA.y[:10])


def test_the_error_is_that_of_the_reconstructions() -> None:
    for rule in ("counter_current", "backprop"):
        trainer = make(rule=rule)
        history = trainer.fit(DATA, DATA, epochs=3, batch_size=10)
        with torch.no_grad():
            expected = F.mse_loss(trainer.model(DATA.x), DATA.x).item()
        assert trainer.evaluate(DATA) == {"mse": pytest.approx(expected)}
        errors = [-row["validation"]["last"] for row in history.rows]
        assert expected == pytest.approx(min(errors))
        assert errors[-1] < DATA.x.square().mean()


def test_encoders_may_stay_as_they_are() -> None:
    trainer = built(encoder_lr=0.0)
    (joint,) = trainer.cascade.units
    before = {name: p.clone() for name, p in trainer.cascade.named_parameters()}
    trainer.step(X, DATA.y[:10])
    trainer.step(X, DATA.y[:10], 1)
    moved = {name for name, p in trainer.cascade.named_parameters() if not torch.equal(p, before[name])}
    # Of the net e1 e2 d2 d1 and the answers to e2 d2 d1: the decoders are d2, d1, and the answer to e2.
    names = ["2.body.1.weight", "3.body.1.weight", "3.body.1.bias", "0.loss.feedback.1.weight"]
    assert moved == {f"blocks.0.blocks.{name}" for name in names}
    assert len(joint.encoders()) == 4


def test_what_cannot_be_done_is_said() -> None:
    with pytest.raises(BadValue, match="'simultaneous'"):
        built(schedule="greedy")
    with pytest.raises(BadValue, match="Sequential"):
        Autoencoder(torch.nn.Conv2d(1, 1, 3, padding=1), progress=False).build((1, 9, 7), 1)
    with pytest.raises(BadValue, match="convolution in each stage"):
        MapPair(torch.nn.ReLU())
    loss = Reconstruction(weight=None)
    loss.build(X, 1)
    assert loss.weight == 9
