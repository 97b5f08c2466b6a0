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
    """The class of each of ``width`` channels, ``[width]``: neighbours, in groups as equal as can be."""
    return torch.arange(width) * n_classes // width


@register_loss("mean_goodness")
class MeanGoodness(LocalLoss):
    """Cross-entropy over the mean activity of each class's channels (DeeperForward, Sun et al., ICLR 2025).

    The channels (the units, where there are no maps; the features, where they stand last) are shared out
    among the classes. With ``g_k`` the mean over the channels of class k, and over their maps, of the block's
    output::

        loss = CE(softmax(scale * g), y)

    The mean of activities, unlike that of their squares, has a gradient that is the same for weak units and
    strong ones. Layer normalisation in front of the next block (`bpfree.nn.RowNorm`, a net's
    ``norm: layer``) takes the mean off, so the block above cannot read the goodness off its input.

    Args:
        scale: What the goodness is multiplied by before the softmax.

    Raises:
        BadValue: When it is built, if a block has fewer channels than there are classes; if the scale is not
            positive.
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
                f"mean goodness of {n_classes} classes: a block has {width} channels, fewer than one for "
                "each: widen the network"
            )
        members = F.one_hot(class_groups(width, n_classes), n_classes).float().to(output.device)
        # It follows from the shape, so it is no part of the state.
        self.register_buffer("groups", members / members.sum(0), persistent=False)

    def goodness(self, output: Tensor) -> Tensor:
        """``g [rows, C]`` of the block's output ``[rows, channels, ...]``."""
        wide = at_least_float32(output).movedim(self.feature_axis, 1)
        with torch.autocast(output.device.type, enabled=False):
            return (wide.flatten(2).mean(2) if wide.ndim > 2 else wide) @ self.groups.to(wide.dtype)

    def scores(self, output: Tensor) -> Tensor:
        return self.scale * self.goodness(output)

    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        return F.cross_entropy(self.scores(output), target)
