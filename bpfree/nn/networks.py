"""Ordinary networks, as flat `nn.Sequential`s whose last layer is the output layer.

They do not depend on the method that trains them: `bpfree.localize` cuts them, and any other module, into
blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import nn

from bpfree._errors import BadValue
from bpfree._settings import did_you_mean

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}


def activation_layer(name: str) -> nn.Module:
    """Return a new activation layer.

    Raises:
        BadValue: If ``name`` is not a key of `ACTIVATIONS`.
    """
    if name not in ACTIVATIONS:
        raise BadValue(f"activation = {name!r}: unknown; {did_you_mean(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def mlp(
    widths: Sequence[int],
    activation: str = "relu",
    dropout: float = 0.0,
    output_bias: bool = True,
    bias: bool = True,
) -> nn.Sequential:
    """Build a multilayer perceptron; samples are flattened first.

    Args:
        widths: Input width, hidden widths, number of classes: ``[784, 1000, 1000, 10]``.
        activation: Key of `ACTIVATIONS`; used after each hidden layer.
        dropout: Dropout probability after each hidden layer; 0 adds no dropout layer.
        output_bias: Whether the output layer has a bias.
        bias: Whether the hidden layers have a bias.

    Raises:
        BadValue: If there are fewer than three widths, or one is below 1, or the activation is unknown.
    """
    if len(widths) < 3 or min(widths) < 1:
        raise BadValue(f"widths = {list(widths)}: expected [inputs, hidden, ..., classes], each at least 1")
    layers: list[nn.Module] = [nn.Flatten()]
    for n_in, n_out in pairwise(widths[:-1]):
        layers += [nn.Linear(n_in, n_out, bias=bias), activation_layer(activation)]
        layers += [nn.Dropout(dropout)] if dropout > 0 else []
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1], bias=output_bias))


def _check_halvings(height: int, width: int, channels: Sequence[int]) -> None:
    if min(height, width) >> len(channels) < 1:
        raise BadValue(
            f"channels = {list(channels)}: images of {height}x{width} can be halved "
            f"{min(height, width).bit_length() - 1} times, not {len(channels)}"
        )


def cnn(
    sample_shape: Sequence[int],
    n_classes: int,
    channels: Sequence[int] = (64, 128, 256, 512),
    activation: str = "relu",
    pool: Literal["avg", "max", "stride"] = "avg",
    batch_norm: bool = False,
    bias: bool = True,
) -> nn.Sequential:
    """Build a network of 3x3 convolutions, each with an activation and 2x2 pooling, and a linear layer.

    The defaults are Mono-Forward's convolutional network (arXiv 2501.09238).

    Args:
        sample_shape: ``(C, H, W)`` of an image.
        n_classes: Number of classes.
        channels: Number of output channels of each convolution.
        activation: Key of `ACTIVATIONS`.
        pool: ``"avg"`` or ``"max"``; ``"stride"`` uses convolutions with stride 2 in place of pooling.
        batch_norm: Whether batch normalization follows each convolution.
        bias: Whether layers have a bias.

    Raises:
        BadValue: If the images are too small to be halved this often.
    """
    n_in, height, width = sample_shape
    strided = pool == "stride"
    if not strided:
        _check_halvings(height, width, channels)
    layers: list[nn.Module] = []
    for n_out in channels:
        layers.append(nn.Conv2d(n_in, n_out, 3, stride=1 + strided, padding=1, bias=bias))
        layers += [nn.BatchNorm2d(n_out)] if batch_norm else []
        layers.append(activation_layer(activation))
        # A strided convolution rounds the size up, pooling rounds it down.
        n_in, height, width = n_out, (height + strided) // 2, (width + strided) // 2
        layers += [] if strided else [{"avg": nn.AvgPool2d, "max": nn.MaxPool2d}[pool](2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(n_in * height * width, n_classes, bias=bias))


def cafo_cnn(
    sample_shape: Sequence[int], n_classes: int, channels: Sequence[int] = (32, 128, 512)
) -> nn.Sequential:
    """Build the network of Cascaded-Forward (arXiv 2303.09728).

    Each block is a 3x3 convolution, ReLU, 2x2 max pooling and batch normalization, in this order; a linear
    layer follows. The convolutions have no bias and Kaiming uniform weights; the normalization has eps 1e-4.

    Args:
        sample_shape: ``(C, H, W)`` of an image.
        n_classes: Number of classes.
        channels: Number of output channels of each convolution.

    Raises:
        BadValue: If the images are too small to be halved this often.
    """
    n_in, height, width = sample_shape
    _check_halvings(height, width, channels)
    layers: list[nn.Module] = []
    for n_out in channels:
        conv = nn.Conv2d(n_in, n_out, 3, padding=1, bias=False)
        nn.init.kaiming_uniform_(conv.weight, nonlinearity="relu")
        layers += [conv, nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(n_out, eps=1e-4)]
        n_in, height, width = n_out, height // 2, width // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(n_in * height * width, n_classes))
