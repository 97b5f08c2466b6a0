"""A convolutional autoencoder."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from bpfree.nn.networks import activation_layer


def autoencoder(
    sample_shape: Sequence[int], channels: Sequence[int] = (32, 8), activation: str = "elu"
) -> nn.Sequential:
    """Build a convolutional autoencoder, an `nn.Sequential` with one block for each convolution.

    Each encoder block is a 3x3 convolution with stride 2 and batch normalization. Each decoder block is a 3x3
    convolution to four times the channels and a pixel shuffle (sub-pixel convolution), which doubles the
    resolution. With upsampling by repeated values, the four pixels would share most of their weights, and a
    single layer could not invert an encoder block. The activation follows every block except those that
    compute the code and the image. The weights of the last block start at zero, the other convolutions start
    orthogonal. The batch normalization has no affine parameters: a block that is trained to agree with
    another one could set the scale to zero.

    Args:
        sample_shape: ``(C, H, W)`` of an image.
        channels: Number of output channels of each encoder block; the last is that of the code.
        activation: Key of `ACTIVATIONS`.

    Raises:
        BadValue: If the activation is unknown.
    """
    sizes = [(int(sample_shape[1]), int(sample_shape[2]))]
    for _ in channels:
        height, width = sizes[-1]
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    widths = [sample_shape[0], *channels]
    encoder: list[nn.Module] = []
    decoder: list[nn.Module] = []
    for level, (n_in, n_out) in enumerate(pairwise(widths)):
        down = nn.Conv2d(n_in, n_out, 3, stride=2, padding=1, bias=False)
        is_code, is_image = level == len(channels) - 1, level == 0
        encoder.append(
            nn.Sequential(down, nn.BatchNorm2d(n_out, affine=False), *_activation(activation, not is_code))
        )
        decoder.insert(
            0, nn.Sequential(*_subpixel(n_out, n_in, sizes[level]), *_activation(activation, not is_image))
        )
    net = nn.Sequential(*encoder, *decoder)
    reset_weights(net)
    for parameter in decoder[-1].parameters():
        nn.init.zeros_(parameter)
    return net


def reset_weights(module: nn.Module) -> None:
    """Initialize all weights: orthogonal for convolutions, PyTorch's default otherwise."""
    for part in module.modules():
        reset = getattr(part, "reset_parameters", None)
        if reset is not None:
            reset()
        if isinstance(part, nn.Conv2d):
            nn.init.orthogonal_(part.weight)


def copy_with_new_weights(module: nn.Module) -> nn.Module:
    """Return a copy of ``module`` with newly initialized weights."""
    copied = copy.deepcopy(module)
    reset_weights(copied)
    return copied


def _subpixel(n_in: int, n_out: int, size: tuple[int, int]) -> list[nn.Module]:
    """Return layers that double the resolution, and crop the last row or column where ``size`` is odd."""
    odd = [side % 2 for side in size]
    crop = [nn.ZeroPad2d((0, -odd[1], 0, -odd[0]))] if any(odd) else []
    return [nn.Conv2d(n_in, 4 * n_out, 3, padding=1), nn.PixelShuffle(2), *crop]


def _activation(name: str, add: bool) -> list[nn.Module]:
    return [activation_layer(name)] if add else []
