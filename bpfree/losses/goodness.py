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

    With ``z [rows, n]`` the block's (flattened) output, before any normalisation::

        G = sum_i z_i^2   or   mean_i z_i^2                          # [rows]
        threshold:  mean over rows of BCEWithLogits(G - theta, positive)
        balanced:   the same, mean over positive rows + mean over negative ones, of which there may be more
        symmetric:  mean over pairs of softplus(-alpha (G_pos - G_neg))       # SymBa, arXiv 2303.08418
        peer:       m <- 0.9 sg(m) + 0.1 mean_{positive rows} z ;  mean_i (mean_j m_j - m_i)^2

    The rows are positives first, then their negatives in the same order.

    Args:
        goodness: ``"sum"`` or ``"mean"`` of squares.
        threshold: theta, in the unit of the goodness. By default n for the sum and 2 for the mean: a theta
            of one form with the goodness of the other does not train.
        objective: ``"threshold"``, ``"balanced"`` or ``"symmetric"``.
        alpha: Slope of the symmetric loss.
        peer_weight: Weight of the peer term; 0 leaves it out.
        peer_momentum: Decay of the running mean activity m, which starts at 0.5.
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
        """``G [rows]`` of the block's output ``[rows, ...]``."""
        # In bfloat16 a goodness of a thousand has steps of four.
        wide = output if output.dtype in WIDE else at_least_float32(output)
        squares = wide.flatten(1).square()
        return squares.sum(1) if self.goodness_form == "sum" else squares.mean(1)

    def scores(self, output: Tensor) -> Tensor:
        """``G - theta``, ``[rows, 1]``: the sum over blocks of it is the goodness readout's score."""
        assert self.threshold is not None
        return (self.goodness(output) - self.threshold).unsqueeze(1)

    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        assert self.threshold is not None
        logits = self.goodness(output) - self.threshold
        if self.objective == "symmetric":
            positive, negative = logits.chunk(2)
            loss = F.softplus(-self.alpha * (positive - negative)).mean()
        elif self.objective == "balanced":
            found = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")
            loss = balanced_mean(found, target)
        else:
            loss = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))
        if self.peer_weight > 0:
            wide = output if output.dtype in WIDE else at_least_float32(output)
            loss = loss + self.peer_weight * self._peer(wide.flatten(1))
        return loss

    def _peer(self, activity: Tensor) -> Tensor:
        now = activity[: len(activity) // 2].mean(0)
        mean = self.peer_momentum * self.mean_activity + (1 - self.peer_momentum) * now
        if self.training:
            with torch.no_grad():
                self.mean_activity.copy_(mean)
        return (mean.mean() - mean).square().mean()


def balanced_mean(values: Tensor, target: Tensor) -> Tensor:
    """The mean of ``values [rows]`` where ``target [rows]`` is 1, plus that where it is 0; 0 for none."""
    first = (target == 1).to(values.dtype)
    positive, negative = ((values * part).sum() / part.sum().clamp(min=1) for part in (first, 1 - first))
    return positive + negative
