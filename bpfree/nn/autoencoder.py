"""A convolutional autoencoder, stage by stage."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from bpfree.nn.networks import activation_layer


def autoencoder(
    sample_shape: Sequence[int], channels: Sequence[int] = (32, 8), activation: str = "elu"
) -> nn.Sequential:
    """Halves images once for each number of channels, and doubles them again; one stage for each convolution.

    Encoder stages are a 3x3 convolution with stride 2 and batch normalisation. Decoder stages are a 3x3
    convolution that gives each position four values of every channel, laid out as its four children
    (sub-pixel convolution): with values repeated instead, the four would share most of their weights, and no
    single layer could undo an encoder's. The activation follows all but the code and the images. The last
    stage starts at zero, the others start orthogonal. The normalisation has no scale of its own: a stage that
    is trained to agree with another could make it vanish.

    Args:
        sample_shape: ``(C, H, W)`` of an image.
        channels: Width after each halving; the last is the code's.
        activation: One of `ACTIVATIONS`.

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
            nn.Sequential(down, nn.BatchNorm2d(n_out, affine=False), *_after(activation, not is_code))
        )
        decoder.insert(
            0, nn.Sequential(*_subpixel(n_out, n_in, sizes[level]), *_after(activation, not is_image))
        )
    net = nn.Sequential(*encoder, *decoder)
    start(net)
    for parameter in decoder[-1].parameters():
        nn.init.zeros_(parameter)
    return net


def start(module: nn.Module) -> None:
    """Draw all weights anew: convolutions orthogonal, all else as PyTorch does."""
    for part in module.modules():
        reset = getattr(part, "reset_parameters", None)
        if reset is not None:
            reset()
        if isinstance(part, nn.Conv2d):
            nn.init.orthogonal_(part.weight)


def twin(stage: nn.Module) -> nn.Module:
    """The same layers with weights of their own."""
    copied = copy.deepcopy(stage)
    start(copied)
    return copied


def _subpixel(n_in: int, n_out: int, size: tuple[int, int]) -> list[nn.Module]:
    """Layers that double maps, to ``size``: an odd one loses the last row or column."""
    odd = [side % 2 for side in size]
    crop = [nn.ZeroPad2d((0, -odd[1], 0, -odd[0]))] if any(odd) else []
    return [nn.Conv2d(n_in, 4 * n_out, 3, padding=1), nn.PixelShuffle(2), *crop]


def _after(activation: str, wanted: bool) -> list[nn.Module]:
    return [activation_layer(activation)] if wanted else []
