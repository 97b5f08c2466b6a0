"""Autoencoders: the pairs that are compared, the parameters that are updated, and the reported error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import bpfree
from bpfree import Autoencoder, BadValue, testing
from bpfree.core.joint import JointBlock
from bpfree.data import TensorData
from bpfree.losses import MapPair, Reconstruction
from bpfree.nn.autoencoder import copy_with_new_weights

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


def test_the_network_returns_images_and_starts_at_zero() -> None:
    net = bpfree.nn.autoencoder((3, 9, 7), (4, 6))
    shapes, x = [], torch.rand(2, 3, 9, 7)
    for stage in net:
        x = stage(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(4, 5, 4), (6, 3, 2), (4, 5, 4), (3, 9, 7)]
    assert torch.equal(x, torch.zeros(2, 3, 9, 7))


def test_a_decoder_stage_has_four_outputs_for_each_position() -> None:
    net = bpfree.nn.autoencoder((1, 8, 8), (4,)).double()
    torch.nn.init.normal_(net[-1][0].weight)
    code = torch.randn(1, 4, 4, 4, dtype=torch.float64)
    output, (weight, bias) = net[-1](code), net[-1][0].parameters()
    # Row 5, column 2 is the lower left of the four outputs for position (2, 1): the third.
    torch.testing.assert_close(output[0, 0, 5, 2], (weight[2] * code[0, :, 1:4, 0:3]).sum() + bias[2])


def test_the_second_stage_has_its_own_weights() -> None:
    stage = bpfree.nn.autoencoder((1, 9, 7), (4, 6))[1]
    other = copy_with_new_weights(stage)
    weight = other[0].weight.flatten(1)
    assert str(other) == str(stage)
    assert not torch.isclose(weight, stage[0].weight.flatten(1)).any()
    torch.testing.assert_close(weight @ weight.T, torch.eye(6))


def test_each_stage_is_compared_with_the_second_autoencoder() -> None:
    joint = built(shapes=0.5, decorrelation=2.0).cascade.units[0]
    assert isinstance(joint, JointBlock)
    joint.train()
    losses = joint.objective(X, X, None).losses
    maps, expected = X, []
    for loss in joint.losses[-2::-1]:
        assert isinstance(loss, MapPair)
        maps = loss.feedback(maps)
        expected.insert(0, maps)
    a = X
    for index, (block, b, loss) in enumerate(zip(joint.parts, expected, losses, strict=False)):
        a = block.body(a)
        terms = []
        for one, other in zip(a.flatten(0, 1), b.flatten(0, 1), strict=True):
            shapes = [(m - m.mean()) / ((m - m.mean()).norm() + 1e-8) for m in (one, other)]
            terms.append((one - other).square().mean() + 0.5 * (shapes[0] - shapes[1]).square().mean())
        total = torch.stack(terms).mean()
        if index == 1:  # the code
            for m in (a, b):
                correlations = torch.corrcoef(m.transpose(0, 1).flatten(1))
                total = total + 2 * (correlations - torch.eye(6)).square().mean()
        torch.testing.assert_close(loss, a.shape[2] * total)
    torch.testing.assert_close(losses[-1], 9 * F.mse_loss(joint.parts[-1].body(a), X))


def test_no_gradient_crosses_a_block_boundary() -> None:
    trainer = make()
    testing.assert_local(trainer, X, DATA.y[:10])
    assert trainer.locality == "L2"
    testing.assert_locality(make(rule="backprop"), X, DATA.y[:10])


def test_the_reported_error_is_that_of_the_reconstructions() -> None:
    for rule in ("counter_current", "backprop"):
        trainer = make(rule=rule)
        history = trainer.fit(DATA, DATA, epochs=3, batch_size=10)
        with torch.no_grad():
            expected = F.mse_loss(trainer.model(DATA.x), DATA.x).item()
        assert trainer.evaluate(DATA) == {"mse": pytest.approx(expected)}
        errors = [row["validation"]["last"] for row in history.rows]
        assert {row["metric"] for row in history.rows} == {"mse"}
        assert history.stages[0]["best"] == min(errors)
        assert expected == pytest.approx(min(errors))
        assert errors[-1] < DATA.x.square().mean()


@pytest.mark.parametrize(
    ("rates", "encoders"),
    [
        ({"code_lr": 0.0}, set()),
        ({}, {"1.body.0.weight", "1.loss.feedback.0.weight"}),
        ({"code_lr": 0.0, "encoder_lr": 1e-3}, {"0.body.0.weight", "2.loss.feedback.0.weight"}),
    ],
)
def test_encoders_have_their_own_learning_rate(rates: dict[str, float], encoders: set[str]) -> None:
    trainer = built(**rates)
    before = {name: p.clone() for name, p in trainer.cascade.named_parameters()}
    trainer.step(X, DATA.y[:10])
    changed = {name for name, p in trainer.cascade.named_parameters() if not torch.equal(p, before[name])}
    # The network is e1 e2 d2 d1. The feedback stages of the first three are copies of d2 e2 e1.
    decoders = {"2.body.0", "3.body.0", "0.loss.feedback.0"}
    names = encoders | {f"{layer}.{kind}" for layer in decoders for kind in ("weight", "bias")}
    assert changed == {f"blocks.0.blocks.{name}" for name in names}


def test_the_encoder_can_have_one_stage() -> None:
    net = bpfree.nn.autoencoder((1, 9, 7), (4,))
    testing.assert_local(Autoencoder(net, progress=False), X, DATA.y[:10])


def test_settings_and_networks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(BadValue, match="'simultaneous'"):
        built(schedule="greedy")
    conv = torch.nn.Conv2d(1, 1, 3, padding=1)
    for net in (conv, torch.nn.Sequential(conv), torch.nn.Sequential()):
        with pytest.raises(BadValue, match="Sequential"):
            Autoencoder(net, progress=False).build((1, 9, 7), 1)
    # The shapes of encoder and decoder stages differ.
    net = torch.nn.Sequential(*bpfree.nn.autoencoder((1, 8, 8), (4, 6))[:3], torch.nn.Conv2d(4, 1, 1))
    net[2][0], net[3] = torch.nn.Conv2d(6, 12, 3, padding=1), torch.nn.Conv2d(3, 1, 1)
    with pytest.raises(
        BadValue, match=r"shape \[4, 4, 4\], but those of the feedback stage have \[3, 4, 4\]"
    ):
        Autoencoder(net, progress=False).fit(TensorData(torch.rand(4, 1, 8, 8), DATA.y[:4], 1), epochs=1)
    with pytest.raises(BadValue, match="activation = 'sine'"):
        bpfree.nn.autoencoder((1, 8, 8), activation="sine")
    loss = Reconstruction(weight=None)
    loss.build(X, 1)
    assert loss.weight == 9


def test_it_predicts_no_classes() -> None:
    with pytest.raises(BadValue, match="it predicts no classes"):
        built().predict(X)
