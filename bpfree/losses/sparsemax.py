"""The sparsemax loss on the class scores of a block."""

from __future__ import annotations

import torch
from torch import Tensor

from bpfree.losses.cross_entropy import LocalCrossEntropy
from bpfree.losses.registry import register_loss
from bpfree.nn import at_least_float32


def sparsemax(scores: Tensor) -> Tensor:
    """Project each row of ``scores [rows, C]`` onto the simplex (Martins and Astudillo, arXiv 1602.02068).

    ``p = max(s - tau, 0)`` with the tau for which each row sums to 1; many entries are exactly 0.
    """
    scores = at_least_float32(scores)
    ordered = scores.sort(1, descending=True).values
    sums, counts = ordered.cumsum(1), torch.arange(1, scores.shape[1] + 1, device=scores.device)
    # The support has at least one element, also in a row of NaN, where it makes the result NaN.
    size = (1 + counts * ordered > sums).sum(1, keepdim=True).clamp(min=1)
    tau = (sums.gather(1, size - 1) - 1) / size
    return (scores - tau).clamp(min=0)


@register_loss("sparsemax")
class LocalSparsemax(LocalCrossEntropy):
    """The Fenchel-Young loss of sparsemax on a projection of the block's output (Blondel et al., 1901.02324).

    ``mean over rows of  -s_y + 1/2 sum_{j in support} (s_j^2 - tau^2) + 1/2``. It is at least 0, and 0 for a
    row whose correct class has the largest score by a margin of 1. Arguments as for `LocalCrossEntropy`.
    """

    def probabilities(self, scores: Tensor) -> Tensor:
        return sparsemax(scores)

    def objective(self, scores: Tensor, target: Tensor) -> Tensor:
        # With p = sparsemax(s), the sum over the support of s^2 - tau^2 is the sum of p (2 s - p). The
        # gradient with respect to p is 0 at the optimum, so p may be a constant.
        p = sparsemax(scores.detach())
        conjugate = (p * scores).sum(1) + (1 - p.square().sum(1)) / 2
        return (conjugate - scores.gather(1, target.unsqueeze(1)).squeeze(1)).mean()

    def score_gradient(self, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        error = sparsemax(scores).scatter_(1, target.unsqueeze(1), -1, reduce="add")
        return self.objective(scores, target), error.div_(len(target))
