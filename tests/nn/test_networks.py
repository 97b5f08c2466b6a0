"""Networks: shapes, errors, and the published numbers of parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import bpfree
from bpfree import BadValue, Trainer
from bpfree.nn import cnn, mlp


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def built(kind: type[Trainer], net: nn.Module, shape: tuple[int, ...], **settings: Any) -> Trainer:
    trainer = kind(net, progress=False, **settings)
    trainer.build(shape, 10)
    return trainer


def counts(trainer: Trainer) -> tuple[int, int, int]:
    """Return the number of parameters of the bodies, of the losses and of the readouts."""
    units = trainer.cascade.units
    return (
        count(*(block.body for block in units)),
        count(*(block.loss for block in units)),
        count(trainer.cascade.readouts),
    )


def test_mono_forward_mlp_has_the_published_parameters() -> None:
    net = mlp([784, 1000, 1000, 10], output_bias=False)
    assert counts(built(bpfree.MonoForward, net, (1, 28, 28))) == (1_786_000, 20_000, 0)


def test_bp_baseline_has_the_body_and_one_output_layer() -> None:
    net = mlp([784, 1000, 1000, 10])
    assert counts(built(bpfree.Backprop, net, (784,))) == (1_786_000, 10_010, 0)
    assert count(net) == 1_786_000 + 10_010


def test_mlp_for_color_images_has_the_published_parameters() -> None:
    net = mlp([3072, 2000, 2000, 2000, 10], output_bias=False)
    assert counts(built(bpfree.MonoForward, net, (3, 32, 32))) == (14_150_000, 60_000, 0)


def test_forward_forward_has_the_published_parameters() -> None:
    trainer = built(bpfree.ForwardForward, mlp([784, 1000, 1000, 1000, 10]), (1, 28, 28))
    assert counts(trainer) == (2_787_000, 0, 20_000)


def test_convolutional_net_has_the_published_parameters() -> None:
    trainer = built(bpfree.MonoForward, cnn((3, 32, 32), 10), (3, 32, 32), head_features=None)
    bodies, heads, _ = counts(trainer)
    # The last head is the output layer of the net, which has a bias.
    assert (bodies, heads) == (1_550_976, 307_200 + 10)


def test_mlp_computes_its_layers_in_order() -> None:
    net = mlp([4, 5, 6, 3])
    x = torch.rand(7, 2, 2)
    hidden = (x.view(7, 4) @ net[1].weight.T + net[1].bias).relu()
    hidden = (hidden @ net[3].weight.T + net[3].bias).relu()
    torch.testing.assert_close(net(x), hidden @ net[5].weight.T + net[5].bias)


def test_mlp_options() -> None:
    names = [type(layer).__name__ for layer in mlp([4, 5, 3], "tanh", dropout=0.2, output_bias=False)]
    assert names == ["Flatten", "Linear", "Tanh", "Dropout", "Linear"]
    assert mlp([4, 5, 3], output_bias=False)[-1].bias is None


def test_convolutional_net_halves_its_maps() -> None:
    net = cnn((3, 20, 12), 5, channels=(4, 8), pool="max", batch_norm=True)
    x = torch.rand(2, 3, 20, 12)
    assert net[:4](x).shape == (2, 4, 10, 6)
    assert net[:8](x).shape == (2, 8, 5, 3)
    assert net(x).shape == (2, 5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mlp([4, 3]), "widths"),
        (lambda: mlp([4, 0, 3]), "widths"),
        (lambda: mlp([4, 5, 3], "rleu"), "activation = 'rleu'.*did you mean 'relu'"),
        (lambda: cnn((1, 8, 8), 3), "halved 3 times, not 4"),
        (lambda: cnn((1, 8, 8), 3, (4,), activation="none"), "activation"),
    ],
)
def test_bad_values_are_refused(make: Any, message: str) -> None:
    with pytest.raises(BadValue, match=message):
        make()
