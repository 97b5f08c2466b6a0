"""Larger networks for images, as `nn.Sequential`s that end in their output layer: VGG and residual nets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree.nn.layers import RowNorm
from bpfree.nn.networks import activation_layer

Norm = Literal["batch", "layer"]
Shortcut = Literal["projection", "pad"]

#: Convolutions by their channels, and "M" where 2x2 maximum pooling halves the maps (arXiv 1901.06656).
VGG8B = (128, 256, "M", 256, 512, "M", 512, "M", 512, "M")
VGG11B = (128, 128, 128, 256, "M", 256, 512, "M", 512, 512, "M", 512, "M")


def scaled(channels: int, width: float) -> int:
    """``channels`` times the multiplier ``width``, at least 1."""
    return max(1, round(channels * width))


def vgg(
    sample_shape: Sequence[int],
    n_classes: int,
    layers: Sequence[int | str] = VGG8B,
    width: float = 1.0,
    hidden: int = 1024,
    activation: str = "leaky_relu",
    norm: Norm = "batch",
    dropout: float = 0.0,
) -> nn.Sequential:
    """3x3 convolutions with padding 1, maximum pooling, one hidden linear layer, and the output layer.

    The defaults are VGG8b of Nøkland and Eidnes (arXiv 1901.06656); ``layers=VGG11B`` is their VGG11b.

    Args:
        sample_shape: ``(C, H, W)`` of an image.
        n_classes: Number of classes.
        layers: Channels of the convolutions, and "M" for pooling.
        width: Multiplies the channels of the convolutions; not the hidden layer.
        hidden: Width of the hidden linear layer.
        activation: One of `bpfree.nn.ACTIVATIONS`.
        norm: ``"batch"``, between each of these layers and its activation; ``"layer"``, without parameters,
            behind each activation, so that no block can read the activity of the one below.
        dropout: Behind each activation; whole maps behind convolutions.

    Raises:
        BadValue: If the images are too small for so many poolings.
    """
    n_in, height, side = sample_shape
    halvings = sum(layer == "M" for layer in layers)
    if min(height, side) >> halvings < 1:
        raise BadValue(f"images of {height}x{side} cannot be halved {halvings} times: give larger ones")
    modules: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, str):
            modules.append(nn.MaxPool2d(2))
            continue
        n_out = scaled(layer, width)
        modules.append(nn.Conv2d(n_in, n_out, 3, padding=1, bias=norm != "batch"))
        modules += _behind(nn.BatchNorm2d(n_out), activation, norm, nn.Dropout2d(dropout))
        n_in = n_out
    n_in *= (height >> halvings) * (side >> halvings)
    modules += [nn.Flatten(), nn.Linear(n_in, hidden, bias=norm != "batch")]
    modules += _behind(nn.BatchNorm1d(hidden), activation, norm, nn.Dropout(dropout))
    return nn.Sequential(*modules, nn.Linear(hidden, n_classes))


def _behind(
    batch: nn.Module, activation: str, norm: Norm, drop: nn.modules.dropout._DropoutNd
) -> list[nn.Module]:
    """What follows a layer with weights."""
    found = [batch] if norm == "batch" else []
    found += [activation_layer(activation)]
    found += [RowNorm()] if norm == "layer" else []
    return found + ([drop] if drop.p > 0 else [])


class PadShortcut(nn.Module):
    """A shortcut without parameters: every ``stride``-th pixel, new channels 0 (1512.03385, option A).

    ``[rows, c, h, w]`` to ``[rows, n_out, ceil(h / stride), ceil(w / stride)]``.
    """

    def __init__(self, n_out: int, stride: int) -> None:
        super().__init__()
        self.n_out, self.stride = n_out, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.n_out - x.shape[1]))


def resnet(
    sample_shape: Sequence[int],
    n_classes: int,
    blocks: Sequence[int] = (2, 2, 2, 2),
    width: float = 1.0,
    norm: Norm = "batch",
    shortcut: Shortcut = "projection",
    dropout: float = 0.0,
) -> nn.Sequential:
    """A residual net for small images: a 3x3 convolution, torchvision's basic blocks, average, output layer.

    By default ResNet-18 as it is used on CIFAR: no pooling and no stride at the beginning. Each residual
    block is one module, so `bpfree.localize` puts its walls between them.

    Args:
        sample_shape: ``(C, H, W)`` of an image.
        n_classes: Number of classes.
        blocks: Residual blocks of each group; a group has twice the channels of the one before, 64 times
            ``width`` at first, and half its resolution. ``(3, 4, 6, 3)`` is ResNet-34.
        width: Multiplies all channels.
        norm: ``"batch"``; ``"layer"``, without parameters, inside the blocks, and in front of each of them,
            so that no block can read the activity of the one below.
        shortcut: Where a group begins: ``"projection"`` by a 1x1 convolution with normalisation, or
            ``"pad"``, without parameters.
        dropout: Of whole maps behind each residual block.
    """
    from torchvision.models.resnet import BasicBlock

    make_norm = nn.BatchNorm2d if norm == "batch" else partial(nn.GroupNorm, 1, affine=False)
    n_in = scaled(64, width)
    modules: list[nn.Module] = [nn.Conv2d(sample_shape[0], n_in, 3, padding=1, bias=False)]
    modules += [nn.BatchNorm2d(n_in)] if norm == "batch" else []
    modules.append(nn.ReLU())
    for group, count in enumerate(blocks):
        n_out = scaled(64 * 2**group, width)
        for k in range(count):
            stride = 2 if group > 0 and k == 0 else 1
            around: nn.Module | None = None
            if (stride, n_in) != (1, n_out):
                around = PadShortcut(n_out, stride)
                if shortcut == "projection":
                    around = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), make_norm(n_out))
            modules += [RowNorm()] if norm == "layer" else []
            modules.append(BasicBlock(n_in, n_out, stride, around, norm_layer=make_norm))
            modules += [nn.Dropout2d(dropout)] if dropout > 0 else []
            n_in = n_out
    return nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_in, n_classes))
