"""Mean goodness of class groups: Forward-Forward without negative samples."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor

from bpfree._errors import BadValue
from bpfree.losses.base import LocalLoss
from bpfree.losses.registry import register_loss
from bpfree.nn import at_least_float32


def class_groups(width: int, n_classes: int) -> Tensor:
    """Return the class of each of ``width`` channels, ``[width]``: contiguous groups of almost equal size."""
    return torch.arange(width) * n_classes // width


@register_loss("mean_goodness")
class MeanGoodness(LocalLoss):
    """Cross-entropy over the mean activity of each class's channels (DeeperForward, Sun et al., ICLR 2025).

    The channels (or the features, if the output has no maps) are divided among the classes. With ``g_k`` the
    mean of the block's output over the channels of class k, and over their maps::

        loss = CE(softmax(scale * g), y)

    The gradient of the mean activity, unlike that of the mean square, is the same for units with small and
    large activities. Layer normalization before the next block (`bpfree.nn.RowNorm`, a net's
    ``norm: layer``) subtracts the mean, so that the goodness cannot be computed from the input of the next
    block.

    Args:
        scale: Factor of the goodness before the softmax.

    Raises:
        BadValue: If the scale is not positive; in `build`, if a block has fewer channels than there are
            classes.
    """

    by_row = True
    groups: Tensor

    def __init__(self, scale: Annotated[float, Gt(0)] = 1.0) -> None:
        super().__init__()
        if scale <= 0:
            raise BadValue(f"scale = {scale}: expected more than 0")
        self.scale = scale

    def build(self, output: Tensor, n_classes: int) -> None:
        width = output.shape[self.feature_axis]
        if width < n_classes:
            raise BadValue(
                f"mean goodness of {n_classes} classes: a block has {width} channels, expected at least one "
                "per class; use a wider network"
            )
        members = F.one_hot(class_groups(width, n_classes), n_classes).float().to(output.device)
        # Determined by the shape, so it is not saved.
        self.register_buffer("groups", members / members.sum(0), persistent=False)

    def goodness(self, output: Tensor) -> Tensor:
        """Compute ``g [rows, C]`` of the block's output ``[rows, channels, ...]``."""
        wide = at_least_float32(output).movedim(self.feature_axis, 1)
        with torch.autocast(output.device.type, enabled=False):
            return (wide.flatten(2).mean(2) if wide.ndim > 2 else wide) @ self.groups.to(wide.dtype)

    def scores(self, output: Tensor) -> Tensor:
        return self.scale * self.goodness(output)

    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        return F.cross_entropy(self.scores(output), target)
