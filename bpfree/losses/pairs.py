"""Scores of pairs of nodes, for link prediction, without the products of all pairs in memory at once."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bpfree.graphs.nodes import PairOutputs
from bpfree.losses.base import ScoringLoss, StatefulFeedbackLoss
from bpfree.losses.goodness import balanced_mean

#: Number of pairs whose products are in memory at once.
PAIRS = 4096


class _PairDot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, first: Tensor, second: Tensor) -> Tensor:
        ctx.save_for_backward(z, first, second)
        parts = zip(first.split(PAIRS), second.split(PAIRS), strict=True)
        return torch.cat([torch.einsum("bd,bd->b", z[i], z[j]) for i, j in parts])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        z, first, second = ctx.saved_tensors
        z_grad = torch.zeros_like(z)
        for i, j, g in zip(first.split(PAIRS), second.split(PAIRS), grad.split(PAIRS), strict=True):
            weight = g.unsqueeze(1)
            z_grad.index_add_(0, i, weight * z[j])
            z_grad.index_add_(0, j, weight * z[i])
        return z_grad, None, None


def pair_dot(z: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """``sum_d z[first, d] z[second, d]``, ``[B]``.

    For the backward pass it saves ``z`` and the indices alone.

    Args:
        z: ``[n, d]``.
        first: int64 ``[B]``.
        second: int64 ``[B]``.
    """
    return _PairDot.apply(z, first, second)  # type: ignore[no-any-return]


class PairScore(ScoringLoss):
    """Binary cross-entropy of pairs of nodes, edge or no edge (Park et al., arXiv 2403.11004).

    With z the block's output and i, j the nodes of a pair::

        cross_entropy:  logit = sum_d z_id z_jd                  mean of BCE over all pairs
        goodness:       logit = sum_d (z_id z_jd)^2 - theta      mean over edges + mean over the others

    The target is ``[B, 3]``: the two nodes, and 1 for an edge.

    Args:
        objective: Which of the two.
        threshold: theta.
    """

    def __init__(
        self, objective: Literal["cross_entropy", "goodness"] = "cross_entropy", threshold: float = 2.0
    ) -> None:
        super().__init__()
        self.objective, self.threshold = objective, threshold

    def logits(self, output: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """The logit of each pair, ``[B]``."""
        if self.objective == "goodness":
            return pair_dot(output.square(), first, second) - self.threshold
        return pair_dot(output, first, second)

    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        first, second, truth = target.unbind(1)
        losses = F.binary_cross_entropy_with_logits(
            self.logits(output, first, second), truth.to(output.dtype), reduction="none"
        )
        if self.objective == "cross_entropy":
            return losses.mean()
        return balanced_mean(losses, truth)

    def scores(self, output: Tensor) -> Tensor:
        """The logit of each pair of a `PairOutputs`, ``[B, 1]``."""
        assert isinstance(output, PairOutputs)
        return self.logits(output.output, output.pairs[:, 0], output.pairs[:, 1]).unsqueeze(1)

    def probabilities(self, scores: Tensor) -> Tensor:
        return scores.sigmoid()


class TopToInputPairs(PairScore, StatefulFeedbackLoss):
    """`PairScore` of a block whose feedback is the state of the block above; the top block gets none."""

    def make_feedback(self, message: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        return message, self.state

    def next_state(self, output: Tensor) -> Tensor:
        return output
