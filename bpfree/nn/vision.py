"""VGG and residual networks for images, as `nn.Sequential`s whose last layer is the output layer."""

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

#: Number of channels of each convolution; "M" is 2x2 max pooling (arXiv 1901.06656).
VGG8B = (128, 256, "M", 256, 512, "M", 512, "M", 512, "M")
VGG11B = (128, 128, 128, 256, "M", 256, 512, "M", 512, 512, "M", 512, "M")


def scaled(channels: int, width: float) -> int:
    """Return ``channels`` times ``width``, rounded, at least 1."""
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
    """Build a VGG: 3x3 convolutions with padding 1, max pooling, a hidden linear layer, the output layer.

    The defaults are VGG8b of Nøkland and Eidnes (arXiv 1901.06656); ``layers=VGG11B`` is their VGG11b.

    Args:
        sample_shape: ``(C, H, W)`` of an image.
        n_classes: Number of classes.
        layers: Number of channels of each convolution, and "M" for 2x2 max pooling.
        width: Multiplier of the numbers of channels; it does not apply to the hidden layer.
        hidden: Width of the hidden linear layer.
        activation: Key of `bpfree.nn.ACTIVATIONS`.
        norm: ``"batch"``: batch normalization between each of these layers and its activation. ``"layer"``:
            layer normalization without parameters after each activation, so that a block cannot read the
            goodness of the block below.
        dropout: Dropout probability after each activation; entire channels after convolutions.

    Raises:
        BadValue: If the images are too small to be halved this often.
    """
    n_in, height, side = sample_shape
    halvings = sum(layer == "M" for layer in layers)
    if min(height, side) >> halvings < 1:
        raise BadValue(f"images of {height}x{side} cannot be halved {halvings} times; use larger images")
    modules: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, str):
            modules.append(nn.MaxPool2d(2))
            continue
        n_out = scaled(layer, width)
        modules.append(nn.Conv2d(n_in, n_out, 3, padding=1, bias=norm != "batch"))
        modules += _activation_part(nn.BatchNorm2d(n_out), activation, norm, nn.Dropout2d(dropout))
        n_in = n_out
    n_in *= (height >> halvings) * (side >> halvings)
    modules += [nn.Flatten(), nn.Linear(n_in, hidden, bias=norm != "batch")]
    modules += _activation_part(nn.BatchNorm1d(hidden), activation, norm, nn.Dropout(dropout))
    return nn.Sequential(*modules, nn.Linear(hidden, n_classes))


def _activation_part(
    batch_norm: nn.Module, activation: str, norm: Norm, drop: nn.modules.dropout._DropoutNd
) -> list[nn.Module]:
    """Return the layers that follow a layer with weights."""
    layers = [batch_norm] if norm == "batch" else []
    layers += [activation_layer(activation)]
    layers += [RowNorm()] if norm == "layer" else []
    return layers + ([drop] if drop.p > 0 else [])


class PadShortcut(nn.Module):
    """Shortcut without parameters: every ``stride``-th pixel, new channels are 0 (option A, 1512.03385).

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
    """Build a residual network for small images of torchvision's basic blocks.

    A 3x3 convolution, the residual blocks, global average pooling and the output layer. The defaults give
    ResNet-18 as used on CIFAR: no pooling and no stride in the first layer. Each residual block is one
    module, so `bpfree.localize` makes it one block.

    Args:
        sample_shape: ``(C, H, W)`` of an image.
        n_classes: Number of classes.
        blocks: Number of residual blocks in each group. The first group has ``64 * width`` channels; each
            further group has twice the channels and half the resolution. ``(3, 4, 6, 3)`` is ResNet-34.
        width: Multiplier of all numbers of channels.
        norm: ``"batch"``: batch normalization. ``"layer"``: layer normalization without parameters, inside
            the blocks and before each block, so that a block cannot read the goodness of the block below.
        shortcut: Shortcut of the first block of a group: ``"projection"``, a 1x1 convolution with
            normalization, or ``"pad"``, see `PadShortcut`.
        dropout: Dropout probability of entire channels after each residual block.
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
            skip: nn.Module | None = None
            if (stride, n_in) != (1, n_out):
                skip = PadShortcut(n_out, stride)
                if shortcut == "projection":
                    skip = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), make_norm(n_out))
            modules += [RowNorm()] if norm == "layer" else []
            modules.append(BasicBlock(n_in, n_out, stride, skip, norm_layer=make_norm))
            modules += [nn.Dropout2d(dropout)] if dropout > 0 else []
            n_in = n_out
    return nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_in, n_classes))
