"""Forward-Forward: a step by hand, bodies, initial weights, settings that exclude each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bpfree import BadValue, ForwardForward, _seeds
from bpfree.losses import Goodness
from bpfree.nn import LengthNorm, StraightThroughReLU
from tests.helpers import CLASSES, easy, images, make_cnn, make_mlp, vectors


def built(net: nn.Module | None = None, shape: tuple[int, ...] = (12,), **settings: Any) -> ForwardForward:
    trainer = ForwardForward(make_mlp() if net is None else net, progress=False, **settings)
    trainer.build(shape, CLASSES)
    return trainer


def test_a_step_agrees_with_the_published_equations() -> None:
    settings = {"momentum": 0.0, "weight_decay": 0.0, "peer_weight": 0.03, "overlay": "force"}
    lr, trainer = 0.05, built(lr=0.05, **settings)
    x, y = vectors(16).batch(torch.arange(16))
    x[:, :CLASSES] = 0.0
    weights = [
        [p.detach().clone().requires_grad_() for p in block.body.parameters()]
        for block in trainer.cascade.units
    ]
    generator = _seeds.generator(torch.device("cpu"), 0, "negatives", 0, 0)
    wrong = (y + torch.randint(1, CLASSES, y.shape, generator=generator)) % CLASSES
    rows = torch.cat([x, x])
    rows[:16, :CLASSES] = F.one_hot(y, CLASSES).float()
    rows[16:, :CLASSES] = F.one_hot(wrong, CLASSES).float()
    sign = torch.cat([torch.ones(16), torch.zeros(16)])
    losses = trainer.step(x, y, 0)
    h = rows
    for k, ((w, b), block) in enumerate(zip(weights, trainer.cascade.units, strict=True)):
        h = h.detach()
        h = h / (h.square().mean(1, keepdim=True).sqrt() + 1e-8)
        pre = h @ w.T + b
        # Straight through: ReLU forward, identity backward.
        z = pre + (pre.relu() - pre).detach()
        logits = z.square().sum(1) - z.shape[1]
        loss = F.binary_cross_entropy_with_logits(logits, sign)
        m = 0.9 * torch.full((z.shape[1],), 0.5) + 0.1 * z[:16].mean(0)
        loss = loss + 0.03 * (m.mean() - m).square().mean()
        torch.testing.assert_close(losses[k], loss.detach())
        torch.autograd.backward(loss)
        for p, after in zip((w, b), block.body.parameters(), strict=True):
            assert p.grad is not None
            torch.testing.assert_close(after.detach(), (p - lr * p.grad).detach(), rtol=1e-4, atol=1e-6)
        h = z


def test_the_output_of_a_block_does_not_depend_on_the_goodness_below() -> None:
    trainer = built(make_mlp(16, 16, 16))
    x = vectors().x
    rows = trainer.cascade.encoding.view(x, "neutral")
    with torch.no_grad():
        outputs = trainer.cascade.outputs(rows)
        for below, block, above in zip(outputs, trainer.cascade.units[1:], outputs[1:], strict=False):
            assert below.square().mean(1).std() > 0
            scaled = below * torch.linspace(0.1, 10, len(below)).unsqueeze(1)
            torch.testing.assert_close(block(scaled), above, rtol=1e-4, atol=1e-5)


def test_layer_normalization_between_blocks_removes_length_and_mean() -> None:
    trainer = built(make_mlp(16, 16, 16), norm="layer", overlay="force")
    names = [type(next(block.body.children())).__name__ for block in trainer.cascade.units]
    assert names == ["OverlaidLinear", "RowNorm", "RowNorm"]
    classifier = trainer.cascade.readout("classifier")
    assert type(classifier.norm).__name__ == "RowNorm"
    with torch.no_grad():
        below, block = torch.rand(8, 16), trainer.cascade.units[1]
        changed = below * torch.linspace(0.5, 10, 8).unsqueeze(1) + torch.linspace(-3, 3, 8).unsqueeze(1)
        torch.testing.assert_close(block(changed), block(below), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "straight"),
    [
        ({}, True),
        ({"peer_weight": 0.0}, False),
        ({"straight_through": False}, False),
        ({"peer_weight": 0.0, "straight_through": True}, True),
    ],
)
def test_relu_is_straight_through_if_there_is_a_peer_term(settings: Any, straight: bool) -> None:
    for block in built(**settings).cascade.units:
        kinds = {type(m) for m in block.body.modules()}
        assert (StraightThroughReLU in kinds) == straight
        assert (nn.ReLU in kinds) != straight


def test_blocks_begin_with_a_normalization() -> None:
    assert isinstance(next(built().cascade.units[1].body.children()), LengthNorm)
    first = built(make_cnn(), (1, 8, 8)).cascade.units[0].body
    kinds = [type(m).__name__ for m in first.children()]
    assert kinds == ["DenseRows", "LengthNorm", "Conv2d", "StraightThroughReLU", "AvgPool2d"]


def test_unit_weights_have_the_published_scale_and_depend_on_the_seed() -> None:
    nets = [make_mlp(400, 300, width=200) for _ in range(4)]
    weights = []
    for net, seed in zip(nets[:3], (0, 0, 1), strict=True):
        built(net, (200,), seed=seed)
        weights.append(net[1].weight)
        for layer, fan_out in ((net[1], 400), (net[3], 300)):
            assert layer.weight.std().item() == pytest.approx(fan_out**-0.5, rel=0.02)
            assert abs(layer.weight.mean().item()) < 4 * fan_out**-0.5 / layer.weight.numel() ** 0.5
            assert not layer.bias.any()
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    before = nets[3][1].weight.clone()
    built(nets[3], (200,), init="torch")
    assert torch.equal(nets[3][1].weight, before)


def test_settings_are_passed_to_the_losses() -> None:
    settings = {"threshold": 3.0, "objective": "symmetric", "alpha": 2.0, "peer_weight": 0.1}
    for loss in built(goodness="mean", peer_momentum=0.5, **settings).cascade.losses:
        assert isinstance(loss, Goodness)
        assert (loss.goodness_form, loss.peer_momentum) == ("mean", 0.5)
        assert {name: getattr(loss, name) for name in settings} == settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classifier": False}, "readout = 'classifier' with classifier = false"),
        ({"negatives": "hard", "readout": "goodness", "classifier": False}, "negatives = 'hard'"),
        ({"negatives": "hard", "schedule": "greedy"}, "negatives = 'hard'"),
        ({"negatives": "hard", "redraw_negatives": False}, "negatives = 'hard'"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(BadValue, match=message):
        built(**settings)


def test_labels_that_do_not_fit_into_the_sample_are_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(BadValue, match="3 label values does not fit into an input of 3"):
        built(net, (3,), overlay="force")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"goodness": "mean", "optimizer": "adam", "lr": 0.01},
        {"objective": "symmetric"},
        {"negatives": "hard"},
        {"schedule": "greedy"},
        {"norm": "layer", "goodness": "mean", "optimizer": "adam", "lr": 0.01},
    ],
    ids=str,
)
def test_it_learns(settings: Any) -> None:
    trainer = ForwardForward(make_mlp(32, 32, width=24), progress=False, **{"lr": 0.01, **settings})
    trainer.fit(easy(width=24), epochs=15, batch_size=16)
    accuracies = trainer.evaluate(easy(seed=1, width=24))["readouts"]
    assert accuracies["classifier"] > 0.9
    assert accuracies["goodness"] > 0.8


def test_convolutions_decrease_their_loss() -> None:
    trainer = ForwardForward(make_cnn(), progress=False, lr=0.002)
    data = images()
    losses = [row["loss"] for row in trainer.fit(data, epochs=6, batch_size=16).rows]
    assert all(last < first for first, last in zip(losses[0], losses[-1], strict=True))


def test_only_the_last_activation_of_a_block_is_straight_through() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)
    )
    trainer = built(
        net,
        cut=[f"{k}" for k in (0, 4)],
        peer_weight=0.2,
        momentum=0.0,
        weight_decay=0.0,
        lr=0.1,
        overlay="force",
    )
    body, loss = trainer.cascade.units[0].body, trainer.cascade.losses[0]
    weights = [p.detach().clone().requires_grad_() for p in body.parameters()]
    x, y = vectors(16).batch(torch.arange(16))
    x[:, :CLASSES] = 0.0
    generator = _seeds.generator(torch.device("cpu"), 0, "negatives", 0, 0)
    wrong = (y + torch.randint(1, CLASSES, y.shape, generator=generator)) % CLASSES
    rows = torch.cat([x, x])
    rows[:, :CLASSES] = F.one_hot(torch.cat([y, wrong]), CLASSES).float()
    trainer.step(x, y, 0)
    h = rows / (rows.square().mean(1, keepdim=True).sqrt() + 1e-8)
    first, second = weights[:2], weights[2:]
    hidden = (h @ first[0].T + first[1]).relu()
    pre = hidden @ second[0].T + second[1]
    z = pre + (pre.relu() - pre).detach()
    sign = torch.cat([torch.ones(16), torch.zeros(16)])
    value = F.binary_cross_entropy_with_logits(z.square().sum(1) - 6, sign)
    m = 0.9 * torch.full((6,), 0.5) + 0.1 * z[:16].mean(0)
    torch.autograd.backward(value + 0.2 * (m.mean() - m).square().mean())
    assert isinstance(loss, Goodness)
    torch.testing.assert_close(loss.mean_activity, m.detach())
    for p, after in zip(weights, body.parameters(), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(after.detach(), (p - 0.1 * p.grad).detach(), rtol=1e-4, atol=1e-6)
