"""Losses of autoencoders: the reconstruction, and counter-current learning's pair of maps."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree.losses.base import FeedbackLoss


class Reconstruction(FeedbackLoss):
    """``weight * mean((output - image)^2)``. The message for the block below is the images, the targets.

    Args:
        weight: Weight of the loss; None: the images' height, as in counter-current learning's code.
    """

    by_row = True

    def __init__(self, weight: float | None = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def build(self, output: Tensor, n_classes: int) -> None:
        self.weight = float(output.shape[-2]) if self.weight is None else self.weight

    def scores(self, output: Tensor) -> Tensor:
        return output

    def make_feedback(self, message: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        return None, message

    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        assert self.weight is not None
        return self.weight * F.mse_loss(output, target)


class MapPair(FeedbackLoss):
    """A block's maps against those that a second autoencoder, run from the clean image down, has there.

    With a and b ``[rows, channels, H, W]``, n(x) each map without its mean, divided by its length, and R(x)
    ``[channels, channels]`` the correlations of the channels over rows and positions (Kao and Hariharan,
    arXiv 2409.19841; R is from their classifiers' loss)::

        H * (mean((a - b)^2) + shapes * mean((n(a) - n(b))^2)
             + decorrelation * (mean((R(a) - I)^2) + mean((R(b) - I)^2)))

    Args:
        feedback: The second autoencoder's stage that gives b.
        shapes: Weight of the normalised maps.
        decorrelation: Weight of the correlations.
    """

    def __init__(self, feedback: nn.Module, shapes: float = 1.0, decorrelation: float = 0.0) -> None:
        super().__init__()
        self.feedback, self.shapes, self.decorrelation = feedback, shapes, decorrelation

    def feedback_parameters(self) -> Iterable[nn.Parameter]:
        return self.feedback.parameters()

    def make_feedback(self, message: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        maps = self.feedback(message)
        return maps, maps

    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        assert feedback is not None
        if output.shape != feedback.shape:
            raise BadValue(
                f"a stage gives maps {list(output.shape[1:])}, its counterpart {list(feedback.shape[1:])}: "
                "an autoencoder to be cut must double what it halves, with the same channels on the way"
            )
        loss = F.mse_loss(output, feedback)
        if self.shapes:
            loss = loss + self.shapes * F.mse_loss(_shape(output), _shape(feedback))
        if self.decorrelation:
            loss = loss + self.decorrelation * (_correlated(output) + _correlated(feedback))
        return output.shape[2] * loss


def _shape(maps: Tensor) -> Tensor:
    """Each map without its mean, divided by its length."""
    centred = maps - maps.mean((2, 3), keepdim=True)
    length: Tensor = torch.linalg.vector_norm(centred, dim=(2, 3), keepdim=True)
    return centred / (length + 1e-8)


def _correlated(maps: Tensor) -> Tensor:
    """Mean square of what differs from 0 between two channels, and from 1 in one, in their correlations."""
    channels = maps.transpose(0, 1).flatten(1)
    channels = channels - channels.mean(1, keepdim=True)
    length: Tensor = torch.linalg.vector_norm(channels, dim=1, keepdim=True)
    channels = channels / (length + 1e-8)
    return (
        (channels @ channels.T - torch.eye(len(maps[0]), dtype=maps.dtype, device=maps.device))
        .square()
        .mean()
    )
