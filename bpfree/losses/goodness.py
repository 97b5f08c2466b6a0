"""Goodness: the Forward-Forward objective."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bpfree._errors import BadValue
from bpfree.losses.base import LocalLoss
from bpfree.losses.registry import register_loss
from bpfree.nn import at_least_float32
from bpfree.nn.layers import WIDE


@register_loss("goodness")
class Goodness(LocalLoss):
    """High activity for positive rows, low activity for negative ones (Hinton, arXiv 2212.13345).

    With ``z [rows, n]`` the block's (flattened) output, before any normalization::

        G = sum_i z_i^2   or   mean_i z_i^2                          # [rows]
        threshold:  mean over rows of BCEWithLogits(G - theta, positive)
        balanced:   mean of the same terms over positive rows + their mean over negative rows
        symmetric:  mean over pairs of softplus(-alpha (G_pos - G_neg))       # SymBa, arXiv 2303.08418
        peer:       m <- 0.9 sg(m) + 0.1 mean_{positive rows} z ;  mean_i (mean_j m_j - m_i)^2

    The positive rows come first, then their negative rows in the same order.

    Args:
        goodness: ``"sum"`` or ``"mean"`` of squares.
        threshold: theta, in the unit of the goodness. By default n for the sum and 2 for the mean: training
            fails with the theta of one form and the goodness of the other.
        objective: ``"threshold"``, ``"balanced"`` or ``"symmetric"``.
        alpha: Slope of the symmetric loss.
        peer_weight: Weight of the peer term; 0: no peer term.
        peer_momentum: Decay of the running mean activity m, which starts at 0.5.

    Raises:
        BadValue: If ``goodness`` or ``objective`` is unknown.
    """

    signed: ClassVar[bool] = True
    mean_activity: Tensor

    def __init__(
        self,
        goodness: Literal["sum", "mean"] = "sum",
        threshold: float | None = None,
        objective: Literal["threshold", "balanced", "symmetric"] = "threshold",
        alpha: float = 4.0,
        peer_weight: float = 0.0,
        peer_momentum: float = 0.9,
    ) -> None:
        super().__init__()
        if goodness not in ("sum", "mean"):
            raise BadValue(f"goodness = {goodness!r}: expected 'sum' or 'mean'")
        if objective not in ("threshold", "balanced", "symmetric"):
            raise BadValue(f"objective = {objective!r}: expected 'threshold', 'balanced' or 'symmetric'")
        self.goodness_form, self.threshold = goodness, threshold
        self.objective, self.alpha = objective, alpha
        self.peer_weight, self.peer_momentum = peer_weight, peer_momentum
        self.by_row = objective != "balanced" and peer_weight == 0

    def build(self, output: Tensor, n_classes: int) -> None:
        width = output[0].numel()
        if self.threshold is None:
            self.threshold = float(width) if self.goodness_form == "sum" else 2.0
        self.register_buffer("mean_activity", torch.full((width,), 0.5, device=output.device))

    def goodness(self, output: Tensor) -> Tensor:
        """Compute ``G [rows]`` of the block's output ``[rows, ...]``."""
        # The spacing of bfloat16 values near 1000 is 4.
        wide = output if output.dtype in WIDE else at_least_float32(output)
        squares = wide.flatten(1).square()
        return squares.sum(1) if self.goodness_form == "sum" else squares.mean(1)

    def scores(self, output: Tensor) -> Tensor:
        """Compute ``G - theta``, ``[rows, 1]``. The goodness readout sums these scores over blocks."""
        assert self.threshold is not None
        return (self.goodness(output) - self.threshold).unsqueeze(1)

    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        assert self.threshold is not None
        logits = self.goodness(output) - self.threshold
        if self.objective == "symmetric":
            positive, negative = logits.chunk(2)
            loss = F.softplus(-self.alpha * (positive - negative)).mean()
        elif self.objective == "balanced":
            losses = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")
            loss = balanced_mean(losses, target)
        else:
            loss = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))
        if self.peer_weight > 0:
            wide = output if output.dtype in WIDE else at_least_float32(output)
            loss = loss + self.peer_weight * self._peer(wide.flatten(1))
        return loss

    def _peer(self, activity: Tensor) -> Tensor:
        """Compute the peer term of ``activity [rows, n]``, and update the running mean in training mode."""
        batch_mean = activity[: len(activity) // 2].mean(0)
        mean = self.peer_momentum * self.mean_activity + (1 - self.peer_momentum) * batch_mean
        if self.training:
            with torch.no_grad():
                self.mean_activity.copy_(mean)
        return (mean.mean() - mean).square().mean()


def balanced_mean(values: Tensor, target: Tensor) -> Tensor:
    """Mean of ``values [rows]`` where ``target [rows]`` is 1, plus their mean where it is 0.

    The mean of no values is 0.
    """
    is_positive = (target == 1).to(values.dtype)
    masks = (is_positive, 1 - is_positive)
    positive, negative = ((values * mask).sum() / mask.sum().clamp(min=1) for mask in masks)
    return positive + negative
