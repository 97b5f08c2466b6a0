"""Losses of autoencoders: the reconstruction, and counter-current learning's pair of maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree.losses._base import LocalLoss


class Reconstruction(LocalLoss):
    """``weight * mean((output - image)^2)``; the images, which are the targets, go on down the wire.

    Args:
        weight: Weight of the loss; None: the images' height, as in counter-current learning's code.
    """

    def __init__(self, weight: float | None = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def build(self, output: Tensor, n_classes: int) -> None:
        self.weight = float(output.shape[-2]) if self.weight is None else self.weight

    def scores(self, output: Tensor) -> Tensor:
        return output

    def teach(self, message: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        return None, message

    def forward(self, output: Tensor, target: Tensor, lesson: Tensor | None = None) -> Tensor:
        assert self.weight is not None
        return self.weight * F.mse_loss(output, target)


class MapPair(LocalLoss):
    """A block's maps against those that a second autoencoder, run from the clean image down, has there.

    With a and b ``[rows, channels, H, W]`` and n(x) each map without its mean, divided by its length
    (Kao and Hariharan, arXiv 2409.19841)::

        H * mean((a - b)^2) + H * mean((n(a) - n(b))^2)

    Args:
        above: The stage of the next block, which the feedback stage reverses in shape.
    """

    def __init__(self, above: nn.Module) -> None:
        super().__init__()
        conv = next((m for m in above.modules() if isinstance(m, nn.Conv2d)), None)
        if conv is None:
            raise BadValue(f"a pair of maps needs a convolution in each stage, not {above}")
        self._widens = any(isinstance(m, nn.Upsample) for m in above.modules())
        self._channels = conv.out_channels, conv.in_channels

    def build(self, output: Tensor, n_classes: int) -> None:
        n_in, n_out = self._channels
        size = tuple(output.shape[2:])
        # What the forward stage halves is scaled up here, and what it scales up is halved.
        before = [] if self._widens else [nn.Upsample(size=size)]
        conv = nn.Conv2d(n_in, n_out, 3, stride=1 + self._widens, padding=1, bias=False)
        nn.init.orthogonal_(conv.weight)
        layers = [*before, conv, nn.BatchNorm2d(n_out, affine=False), nn.ReLU()]
        self.feedback = nn.Sequential(*layers).to(output.device)

    def teach(self, message: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        maps = self.feedback(message)
        return maps, maps

    def forward(self, output: Tensor, target: Tensor, lesson: Tensor | None = None) -> Tensor:
        assert lesson is not None
        values, shapes = F.mse_loss(output, lesson), F.mse_loss(_shape(output), _shape(lesson))
        return output.shape[2] * (values + shapes)


def _shape(maps: Tensor) -> Tensor:
    """Each map without its mean, divided by its length."""
    centred = maps - maps.mean((2, 3), keepdim=True)
    length: Tensor = torch.linalg.vector_norm(centred, dim=(2, 3), keepdim=True)
    return centred / (length + 1e-8)
