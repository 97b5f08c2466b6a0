"""Losses of autoencoders: the reconstruction error, and the pair loss of counter-current learning."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree.losses.base import FeedbackLoss


class Reconstruction(FeedbackLoss):
    """``weight * mean((output - image)^2)``. The message for the block below is the message from above.

    Args:
        weight: Weight of the loss; None: the height of the images, as in the authors' code of counter-current
            learning.
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
    """Difference of the maps of a block and of a second autoencoder, whose input is the clean image.

    With a ``[rows, channels, H, W]`` the maps of the block and b those of the second autoencoder at the same
    depth, n(x) each map minus its mean, divided by its norm, and R(x) ``[channels, channels]`` the
    correlations of the channels over rows and positions (Kao and Hariharan, arXiv 2409.19841; R is from the
    loss of their classifiers)::

        H * (mean((a - b)^2) + shapes * mean((n(a) - n(b))^2)
             + decorrelation * (mean((R(a) - I)^2) + mean((R(b) - I)^2)))

    Args:
        feedback: The stage of the second autoencoder whose output is b.
        shapes: Weight of the normalized maps.
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
                f"the maps of a stage have the shape {list(output.shape[1:])}, but those of the feedback "
                f"stage have {list(feedback.shape[1:])}: expected a decoder whose sizes and channels "
                "mirror those of the encoder"
            )
        loss = F.mse_loss(output, feedback)
        if self.shapes:
            loss = loss + self.shapes * F.mse_loss(_normalized_maps(output), _normalized_maps(feedback))
        if self.decorrelation:
            loss = loss + self.decorrelation * (_correlation_loss(output) + _correlation_loss(feedback))
        return output.shape[2] * loss


def _normalized_maps(maps: Tensor) -> Tensor:
    """Subtract the mean of each map, and divide by the norm."""
    centered = maps - maps.mean((2, 3), keepdim=True)
    length: Tensor = torch.linalg.vector_norm(centered, dim=(2, 3), keepdim=True)
    return centered / (length + 1e-8)


def _correlation_loss(maps: Tensor) -> Tensor:
    """Mean squared difference of the channels' correlation matrix and the identity."""
    channels = maps.transpose(0, 1).flatten(1)
    channels = channels - channels.mean(1, keepdim=True)
    length: Tensor = torch.linalg.vector_norm(channels, dim=1, keepdim=True)
    channels = channels / (length + 1e-8)
    return (
        (channels @ channels.T - torch.eye(len(maps[0]), dtype=maps.dtype, device=maps.device))
        .square()
        .mean()
    )
