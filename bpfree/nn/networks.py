"""Ordinary networks, as flat `nn.Sequential`s that end in their output layer.

They know nothing of how they are trained: `bpfree.localize` cuts them, and any other module, into blocks.
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
    """A new layer of `ACTIVATIONS`; BadValue if there is none of that name."""
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
    """A multilayer perceptron; images are flattened.

    Args:
        widths: Input width, hidden widths, number of classes: ``[784, 1000, 1000, 10]``.
        activation: One of `ACTIVATIONS`, after each hidden layer.
        dropout: Probability of a zero after each hidden layer.
        output_bias: Whether the output layer has a bias.
        bias: Whether the hidden layers have one.

    Raises:
        BadValue: If there are fewer than three widths, or one is not positive.
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
    """3x3 convolutions with padding 1, an activation and 2x2 pooling after each, then one linear layer.

    The defaults are Mono-Forward's convolutional network (arXiv 2501.09238).

    Args:
        sample_shape: ``(C, H, W)`` of an image.
        n_classes: Number of classes.
        channels: Width of each convolution.
        activation: One of `ACTIVATIONS`.
        pool: ``"avg"`` or ``"max"``; ``"stride"`` moves the convolution by 2 in place of pooling.
        batch_norm: Whether a batch normalisation follows each convolution.
        bias: Whether layers have a bias.

    Raises:
        BadValue: If the images are too small for so many poolings.
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
        # A strided convolution rounds up, pooling down.
        n_in, height, width = n_out, (height + strided) // 2, (width + strided) // 2
        layers += [] if strided else [{"avg": nn.AvgPool2d, "max": nn.MaxPool2d}[pool](2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(n_in * height * width, n_classes, bias=bias))


def cafo_cnn(
    sample_shape: Sequence[int], n_classes: int, channels: Sequence[int] = (32, 128, 512)
) -> nn.Sequential:
    """3x3 convolution, ReLU, 2x2 max pooling and batch normalisation, in this order, then one linear layer.

    The network of Cascaded-Forward (arXiv 2303.09728). The convolutions have no bias and are drawn by Kaiming
    uniform; the normalisation has eps 1e-4.

    Args:
        sample_shape: ``(C, H, W)`` of an image.
        n_classes: Number of classes.
        channels: Width of each convolution.

    Raises:
        BadValue: If the images are too small for so many poolings.
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
