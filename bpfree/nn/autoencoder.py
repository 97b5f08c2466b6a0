"""A convolutional autoencoder, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def autoencoder(sample_shape: Sequence[int], channels: Sequence[int] = (16, 32, 64)) -> nn.Sequential:
    """Halves images once for each number of channels, and doubles them again; one stage for each convolution.

    Encoder stages are a 3x3 convolution with stride 2, decoder stages scale up by repeating values before a
    3x3 convolution; batch normalisation and ReLU follow all but the last, whose filters start at zero; the
    others start orthogonal. The normalisation has no scale of its own: a stage that is trained to agree with
    another could make it vanish.

    Args:
        sample_shape: ``(C, H, W)`` of an image.
        channels: Width after each halving.
    """
    sizes, n_in = [tuple(sample_shape[1:])], sample_shape[0]
    stages: list[nn.Module] = []
    for n_out in channels:
        conv = nn.Conv2d(n_in, n_out, 3, stride=2, padding=1, bias=False)
        stages.append(nn.Sequential(conv, nn.BatchNorm2d(n_out, affine=False), nn.ReLU()))
        height, width = sizes[-1]
        nn.init.orthogonal_(conv.weight)
        sizes.append(((height + 1) // 2, (width + 1) // 2))
        n_in = n_out
    for n_out, size in zip([*channels[-2::-1], 0], sizes[-2::-1], strict=True):
        up = nn.Upsample(size=size)
        if n_out:
            conv = nn.Conv2d(n_in, n_out, 3, padding=1, bias=False)
            nn.init.orthogonal_(conv.weight)
            stages.append(nn.Sequential(up, conv, nn.BatchNorm2d(n_out, affine=False), nn.ReLU()))
        else:
            conv = nn.Conv2d(n_in, sample_shape[0], 3, padding=1)
            nn.init.zeros_(conv.weight)
            stages.append(nn.Sequential(up, conv))
        n_in = n_out
    return nn.Sequential(*stages)
