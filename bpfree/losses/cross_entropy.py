"""Cross-entropy on a block's own class scores: Mono-Forward, deep supervision, and plain backpropagation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfree.losses._base import LocalLoss
from bpfree.losses._registry import register_loss


@register_loss("mono_forward")
class LocalCrossEntropy(LocalLoss):
    """Softmax cross-entropy of a projection of the block's output (Gong et al., arXiv 2501.09238).

    ``G = head(a)`` with ``a [rows, ...]`` the block's output and ``G [rows, C]``; the loss is the mean of
    ``CE(softmax(G), y)``.

    Args:
        head: A module that makes class scores of the output, as a network's own output layer does. By
            default a projection matrix ``M [C, n]`` without bias on the flattened output, as in the paper.
    """

    def __init__(self, head: nn.Module | None = None) -> None:
        super().__init__()
        self.head = head

    def build(self, output: Tensor, n_classes: int) -> None:
        if self.head is None:
            projection = nn.Linear(output[0].numel(), n_classes, bias=False)
            self.head = nn.Sequential(nn.Flatten(), projection).to(output.device)

    def scores(self, output: Tensor) -> Tensor:
        assert self.head is not None
        return self.head(output)  # type: ignore[no-any-return]

    def forward(self, output: Tensor, target: Tensor, lesson: Tensor | None = None) -> Tensor:
        return F.cross_entropy(self.scores(output), target)

    def output_gradient(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        linear = self._linear()
        flat = output.flatten(1)
        scores = linear(flat)
        error = scores.softmax(1)
        error[torch.arange(len(target), device=target.device), target] -= 1
        error /= len(target)
        linear.weight.grad = error.T @ flat
        if linear.bias is not None:
            linear.bias.grad = error.sum(0)
        return F.cross_entropy(scores, target), (error @ linear.weight).view_as(output)

    def _linear(self) -> nn.Linear:
        children = list(self.head.children()) if isinstance(self.head, nn.Sequential) else [self.head]
        weighty = [child for child in children if not isinstance(child, nn.Flatten)]
        if len(weighty) == 1 and isinstance(weighty[0], nn.Linear):
            return weighty[0]
        raise TypeError(f"the closed-form gradient needs one linear layer as head, not {self.head}")
