"""Cross-entropy on a block's own class scores: Mono-Forward, deep supervision, and plain backpropagation."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree.losses._base import LocalLoss
from bpfree.losses._registry import register_loss
from bpfree.nn import RootMeanSquarePool

Pooling = Literal["rms", "average"]


def flat_features(pool: int | None, pooling: Pooling = "rms") -> nn.Sequential:
    """Makes feature vectors ``[rows, n]`` of outputs; maps ``[rows, c, h, w]`` may be pooled first."""
    kind = RootMeanSquarePool if pooling == "rms" else nn.AdaptiveAvgPool2d
    return nn.Sequential(*([kind(pool)] if pool is not None else []), nn.Flatten())


@register_loss("mono_forward")
class LocalCrossEntropy(LocalLoss):
    """Softmax cross-entropy of a projection of the block's output (Gong et al., arXiv 2501.09238).

    ``G = head(a)`` with ``a [rows, ...]`` the block's output and ``G [rows, C]``; the loss is the mean of
    ``CE(softmax(G), y)``.

    Args:
        head: A module that makes class scores of the output, as a network's own output layer does. By
            default a projection matrix ``M [C, n]`` on the flattened output, without bias as in the paper.
        bias: Whether the default head has a bias.
        pool: Side of the map that maps are pooled to in front of the default head; 1 is global. Other
            outputs are left alone.
        pooling: By the root of the mean square, or by the average.

    Raises:
        BadValue: When it is built, if the head gives another number of scores than there are classes.
    """

    by_row = True

    def __init__(
        self,
        head: nn.Module | None = None,
        bias: bool = False,
        pool: int | None = None,
        pooling: Pooling = "rms",
    ) -> None:
        super().__init__()
        self.head, self.bias, self.pool, self.pooling = head, bias, pool, pooling

    def build(self, output: Tensor, n_classes: int) -> None:
        if self.head is None:
            features = flat_features(self.pool if output.ndim == 4 else None, self.pooling)
            projection = nn.Linear(features(output).shape[1], n_classes, bias=self.bias)
            self.head = nn.Sequential(*features, projection).to(output.device)
            return
        width = list(self.head(output).shape[1:])
        if width != [n_classes]:
            raise BadValue(
                f"the output layer gives {width} scores a sample, the data have {n_classes} classes: give "
                f"the network {n_classes} outputs, or name all classes by TensorData(x, y, n_classes=...)"
            )

    def scores(self, output: Tensor) -> Tensor:
        assert self.head is not None
        return self.head(output)  # type: ignore[no-any-return]

    def forward(self, output: Tensor, target: Tensor, lesson: Tensor | None = None) -> Tensor:
        return self.objective(self.scores(output), target)

    def objective(self, scores: Tensor, target: Tensor) -> Tensor:
        """The loss of class scores ``[rows, C]``; its gradient is (probabilities - one-hot) / rows."""
        return F.cross_entropy(scores, target)

    def output_gradient(
        self, output: Tensor, target: Tensor, lesson: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        linear = self.linear
        flat = output.flatten(1)
        loss, error = self.score_gradient(linear(flat), target)
        linear.weight.grad = error.T @ flat
        if linear.bias is not None:
            linear.bias.grad = error.sum(0)
        return loss, (error @ linear.weight).view_as(output)

    def score_gradient(self, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """`objective` and its gradient by the class scores ``[..., rows, C]``, without autograd."""
        # With a row for each class: PyTorch's softmax over a short last axis takes many times as long.
        logs = scores.mT.contiguous().log_softmax(-2)
        label = target.expand(*logs.shape[:-2], 1, -1)
        loss = -logs.gather(-2, label).mean((-2, -1))
        error = logs.exp_().scatter_(-2, label, -1, reduce="add")
        return loss, error.div_(len(target)).mT

    @property
    def linear(self) -> nn.Linear:
        """The head, where it is one linear layer.

        Raises:
            TypeError: If it is not.
        """
        children = list(self.head.children()) if isinstance(self.head, nn.Sequential) else [self.head]
        weighty = [child for child in children if not isinstance(child, nn.Flatten)]
        if len(weighty) == 1 and isinstance(weighty[0], nn.Linear):
            return weighty[0]
        raise TypeError(f"the closed-form gradient needs one linear layer as head, not {self.head}")
