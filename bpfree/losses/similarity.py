"""Prediction and similarity matching (Nøkland and Eidnes, local error signals)."""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree.losses.base import ClosedFormStep
from bpfree.losses.cross_entropy import FEATURES, LocalCrossEntropy
from bpfree.losses.registry import register_loss
from bpfree.nn import FeaturesFirst, at_least_float32

#: Layers by the number of axes of an output.
CONVOLUTIONS: dict[int, type[nn.Module]] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
POOLS: dict[int, type[nn.Module]] = {3: nn.AvgPool1d, 4: nn.AvgPool2d, 5: nn.AvgPool3d}


def similarity_matrix(features: Tensor) -> Tensor:
    """Compute ``S [rows, rows]``, the cosines between centered rows ``[rows, n]``.

    The mean of each row is subtracted from it. The cosines of a constant row are 0.
    """
    centered = features - features.mean(1, keepdim=True)
    unit = F.normalize(centered, dim=1, eps=1e-8)
    return unit @ unit.T


def label_similarity(target: Tensor, n_classes: int) -> Tensor:
    """Compute `similarity_matrix` of one-hot rows: 1 for equal classes, -1/(C - 1) for different classes."""
    same = target.unsqueeze(0) == target.unsqueeze(1)
    other = -1.0 / (n_classes - 1) if n_classes > 1 else 0.0
    return torch.where(same, 1.0, other)


def similarity_loss(features: Tensor, target: Tensor, n_classes: int) -> Tensor:
    """Compute the mean over all pairs of rows of ``(S(features) - S(one-hot labels))^2`` (equation 1)."""
    wide = at_least_float32(features)
    with torch.autocast(wide.device.type, enabled=False):
        difference = similarity_matrix(wide) - label_similarity(target, n_classes).to(wide.dtype)
    return difference.square().mean()


def map_std(maps: Tensor) -> Tensor:
    """Compute the standard deviation ``[rows, c]`` of each map of ``[rows, c, ...]``.

    A map with one element is returned as it is.
    """
    wide = at_least_float32(maps)
    n, axes = math.prod(wide.shape[2:]), tuple(range(2, wide.ndim))
    if n == 1:
        return wide.flatten(1)
    # Deviations sum to 0, so the gradient through the mean is 0. This is several times faster than torch.std.
    variance = (wide - wide.detach().mean(axes, keepdim=True)).square().sum(axes) / (n - 1)
    # The constant makes the gradient of a constant map 0 instead of 0/0.
    return (variance + 1e-12).sqrt()


@register_loss("predsim")
class PredSim(LocalCrossEntropy):
    """Prediction and similarity matching (Nøkland and Eidnes, arXiv 1901.06656).

    With ``a`` the block's output, ``P`` a learned projection (for maps and sequences a convolution with
    kernel size 3, otherwise a linear layer, without bias) and ``S`` `similarity_matrix`::

        sim  = mean_ij (S(std(P a)) - S(Y))_ij^2      # std over each map; P a itself if there are no maps
        pred = CE(softmax(M a), y)                    # a is average-pooled first, see ``features``
        loss = (1 - w) pred + w sim

    With ``w = 0`` it is the loss of Mono-Forward. With ``w = 1`` the body is trained by ``sim`` only, and
    ``M`` is trained on the detached output, so that the accuracy of the block can be measured.

    Args:
        sim_weight: w.
        features: Largest number of features for the prediction. Maps are average-pooled in squares (sequences
            in intervals) of the smallest sufficient size; None: they are not pooled.
        project: Whether to use ``P``.
        bias: Whether ``M`` has a bias.

    Raises:
        BadValue: If the weight is not between 0 and 1; in `build`, if the output has more than three axes
            besides those of rows and features.
    """

    def __init__(
        self,
        sim_weight: Annotated[float, Ge(0), Le(1)] = 0.99,
        features: Annotated[int, Ge(1)] | None = FEATURES,
        project: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__(bias=bias, features=features)
        if not 0 <= sim_weight <= 1:
            raise BadValue(f"sim_weight = {sim_weight}: expected 0 to 1")
        self.sim_weight, self.project = sim_weight, project
        self.by_row = sim_weight == 0
        self.projection: nn.Module = nn.Identity()

    def build(self, output: Tensor, n_classes: int) -> None:
        self.n_classes = n_classes
        super().build(output, n_classes)
        if self.project and self.sim_weight > 0:
            width = output.shape[self.feature_axis]
            kind = CONVOLUTIONS.get(output.ndim)
            conv = None if kind is None else kind(width, width, 3, padding=1, bias=False)
            self.projection = nn.Linear(width, width, bias=False) if conv is None else conv
            self.projection.to(output.device)

    def planned_parameters(self, output: Tensor, n_classes: int) -> int:
        width, kernel = output.shape[self.feature_axis], 3 ** (output.ndim - 2)
        projects = self.project and self.sim_weight > 0
        return super().planned_parameters(output, n_classes) + (width**2 * kernel if projects else 0)

    def _features(self, output: Tensor) -> nn.Sequential:
        if output.ndim > 2 and output.ndim not in CONVOLUTIONS:
            raise BadValue(
                f"predsim on outputs of shape {list(output.shape[1:])} per sample: expected [features], or "
                "maps with one to three axes besides the features; reshape them, or use 'mono_forward'"
            )
        if self.features is None or output.ndim == 2:
            return nn.Sequential(nn.Flatten())
        maps = output.movedim(self.feature_axis, 1)
        side = pooling_size(maps, self.features)
        if side == 1:
            return nn.Sequential(nn.Flatten())
        transposed = [FeaturesFirst()] if self.feature_axis == -1 else []
        sides = tuple(min(side, size) for size in maps.shape[2:])
        pool = POOLS[output.ndim](side if set(sides) == {side} else sides, ceil_mode=True)
        return nn.Sequential(*transposed, pool, nn.Flatten())

    def similarity(self, output: Tensor, target: Tensor) -> Tensor:
        """Compute ``sim``."""
        projected = self.projection(output.movedim(self.feature_axis, 1))
        features = map_std(projected) if projected.ndim > 2 else projected
        return similarity_loss(features, target, self.n_classes)

    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        w = self.sim_weight
        if w == 0:
            return super().forward(output, target)
        sim = self.similarity(output, target)
        if w == 1:
            return sim + super().forward(output.detach(), target)
        return (1 - w) * super().forward(output, target) + w * sim

    def closed_form(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> ClosedFormStep:
        raise TypeError("PredSim has no closed-form gradient")

    def check_closed_form(self) -> None:
        raise TypeError("PredSim has no closed-form gradient")


def pooling_size(maps: Tensor, features: int) -> int:
    """Smallest pooling window for which ``maps [rows, c, ...]`` have at most ``features`` values per row.

    The size of the map, if there are more channels than ``features``.
    """
    channels, sizes = maps.shape[1], maps.shape[2:]
    sides = range(1, max(sizes))
    fitting = (k for k in sides if channels * math.prod(math.ceil(size / k) for size in sizes) <= features)
    return next(fitting, max(sizes))
