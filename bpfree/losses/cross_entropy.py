"""Cross-entropy on a block's own class scores: Mono-Forward, deep supervision, and plain backpropagation."""

from __future__ import annotations

import math
import warnings
from typing import Annotated, Literal

import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree.losses.base import ClosedFormLoss, ClosedFormStep, ScoringLoss
from bpfree.losses.registry import register_loss
from bpfree.nn import FeaturesFirst, MapPool, RootMeanSquarePool
from bpfree.nn.weights import is_plain

Pooling = Literal["rms", "average"]


#: Largest number of features of a local head by default, if pooling can reduce them.
FEATURES = 4096


def flat_features(
    output: Tensor,
    pool: int | None,
    pooling: Pooling = "rms",
    limit: int | None = FEATURES,
    axis: int = 1,
) -> nn.Sequential:
    """Return a module that maps outputs like ``output [rows, ...]`` to feature vectors ``[rows, n]``.

    Args:
        output: An output.
        pool: Side that maps ``[rows, c, h, w]`` are pooled to; other outputs are not pooled.
        pooling: Pooling by the root of the mean square (``"rms"``) or by the average.
        limit: Largest number of features without ``pool``: larger maps (with one to three position axes) are
            pooled to the largest sides within the limit, at least 1. None: any number.
        axis: The axis of the features, 1 or -1.
    """
    if pool is not None and output.ndim == 4:
        kind = RootMeanSquarePool if pooling == "rms" else nn.AdaptiveAvgPool2d
        return nn.Sequential(kind(pool), nn.Flatten())
    if limit is None or pool is not None or not 3 <= output.ndim <= 5 or output[0].numel() <= limit:
        return nn.Sequential(nn.Flatten())
    transposed = [FeaturesFirst()] if axis == -1 else []
    maps = nn.Sequential(*transposed)(output)
    return nn.Sequential(*transposed, MapPool(_sides(maps, limit), pooling == "rms"), nn.Flatten())


def _sides(maps: Tensor, limit: int) -> list[int]:
    """Return the largest pooled sizes, equal where possible, with at most ``limit`` values per row."""
    sizes = maps.shape[2:]
    candidates = ([min(size, side) for size in sizes] for side in range(max(sizes), 0, -1))
    fitting = (sides for sides in candidates if maps.shape[1] * math.prod(sides) <= limit)
    return next(fitting, [1] * len(sizes))


#: Layers that map scores to probabilities.
NORMALIZED = (nn.Softmax, nn.Softmax2d, nn.Softmin, nn.Sigmoid, nn.Hardsigmoid)


@register_loss("mono_forward")
class LocalCrossEntropy(ScoringLoss, ClosedFormLoss):
    """Softmax cross-entropy of a projection of the block's output (Gong et al., arXiv 2501.09238).

    ``G = head(a)`` with ``a [rows, ...]`` the block's output and ``G [rows, C]``; the loss is the mean of
    ``CE(softmax(G), y)``.

    Args:
        head: A module that maps the output to class scores, such as the output layer of a network. By default
            a projection matrix ``M [C, n]`` on the flattened output, without bias as in the paper.
        bias: Whether the default head has a bias.
        pool: Side of the map that maps are pooled to before the default head; 1 is global. Other outputs are
            not pooled.
        pooling: Pooling by the root of the mean square (``"rms"``) or by the average.
        features: Largest number of features of the default head without ``pool``, see `flat_features`; None:
            any number.

    Raises:
        BadValue: In `build`, if the number of scores of the head is not the number of classes.
    """

    by_row = True

    def __init__(
        self,
        head: nn.Module | None = None,
        bias: bool = False,
        pool: int | None = None,
        pooling: Pooling = "rms",
        features: Annotated[int, Ge(1)] | None = FEATURES,
    ) -> None:
        super().__init__()
        self.head, self.bias, self.pool, self.pooling = head, bias, pool, pooling
        self.features = features

    def build(self, output: Tensor, n_classes: int) -> None:
        if self.head is None:
            features = self._features(output)
            projection = nn.Linear(features(output).shape[1], n_classes, bias=self.bias)
            self.head = nn.Sequential(*features, projection).to(output.device)
            return
        last = list(self.head.modules())[-1]
        if isinstance(last, NORMALIZED):
            warnings.warn(
                f"the output layer ends in {type(last).__name__}: cross-entropy applies a softmax to the "
                "scores, and learns slowly from scores between 0 and 1; remove this layer",
                stacklevel=2,
            )
        width = list(self.head(output).shape[1:])
        if width != [n_classes]:
            raise BadValue(
                f"the output layer has {width} scores per sample, but the data have {n_classes} classes: use "
                f"a network with {n_classes} outputs, or set TensorData(x, y, n_classes=...)"
            )

    def planned_parameters(self, output: Tensor, n_classes: int) -> int:
        return 0 if self.head is not None else self._features(output)(output).shape[1] * n_classes

    def _features(self, output: Tensor) -> nn.Sequential:
        return flat_features(output, self.pool, self.pooling, self.features, self.feature_axis)

    def scores(self, output: Tensor) -> Tensor:
        assert self.head is not None
        result: Tensor = self.head(output)
        return result

    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        return self.objective(self.scores(output), target)

    def objective(self, scores: Tensor, target: Tensor) -> Tensor:
        """The loss of class scores ``[rows, C]``; its gradient is (probabilities - one-hot) / rows."""
        return F.cross_entropy(scores, target)

    def closed_form(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> ClosedFormStep:
        linear, flat = self.linear, output.flatten(1)
        loss, error = self.score_gradient(linear(flat), target)
        gradients = {}
        if linear.weight.requires_grad:
            gradients[linear.weight] = error.T @ flat
        if linear.bias is not None and linear.bias.requires_grad:
            gradients[linear.bias] = error.sum(0)
        return ClosedFormStep(loss, (error @ linear.weight).view_as(output), gradients)

    def check_closed_form(self) -> None:
        _ = self.linear

    def score_gradient(self, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Compute `objective` and its gradient for class scores ``[..., rows, C]``, without autograd."""
        # The classes are the second to last axis: a softmax over a short last axis is many times slower.
        logs = scores.mT.contiguous().log_softmax(-2)
        label = target.expand(*logs.shape[:-2], 1, -1)
        loss = -logs.gather(-2, label).mean((-2, -1))
        error = logs.exp_().scatter_(-2, label, -1, reduce="add")
        return loss, error.div_(len(target)).mT

    @property
    def linear(self) -> nn.Linear:
        """The linear layer of the head.

        Raises:
            TypeError: If the head is not one linear layer.
        """
        children = list(self.head.children()) if isinstance(self.head, nn.Sequential) else [self.head]
        layers = [child for child in children if not isinstance(child, nn.Flatten)]
        if len(layers) == 1 and isinstance(layers[0], nn.Linear) and is_plain(layers[0]):
            return layers[0]
        raise TypeError(
            "the closed-form gradient needs one linear layer as head, without hooks and parametrizations, "
            f"not {', '.join(type(child).__name__ for child in layers)}"
        )
