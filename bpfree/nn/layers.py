"""Small layers that the bodies are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def widened(x: Tensor) -> Tensor:
    """``x`` in float32 if it is narrower: sums of squares and of probabilities need more than 8 bits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class LengthNorm(nn.Module):
    """Divide each row by the root of its mean square, so that no length reaches the next block.

    ``v -> v / (sqrt(mean_j v_j^2) + eps)`` over all but the first axis; input and output ``[rows, ...]``.
    Without it a Forward-Forward block could read its predecessor's goodness (Hinton, arXiv 2212.13345).
    """

    def __init__(self, eps: float = 1e-8) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = widened(x)
        rms = x.flatten(1).square().mean(1).sqrt()
        return x / (rms.view(-1, *[1] * (x.dim() - 1)) + self.eps)


class RowNorm(nn.Module):
    """Layer normalisation without parameters: each row without its mean, divided by its deviation.

    ``v -> (v - mean(v)) / sqrt(var(v) + eps)`` over all but the first axis; input and output ``[rows, ...]``.
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(widened(x), x.shape[1:], eps=self.eps)


class RootMeanSquarePool(nn.Module):
    """Maps ``[rows, c, h, w]`` to ``[rows, c, side, side]``, the root of the mean square of each region."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(widened(x).square(), self.side).sqrt()


class FeaturesFirst(nn.Module):
    """``[rows, ..., c]`` to ``[rows, c, ...]``: the layout of convolutions, of what has its features last."""

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(-1, 1)


class MapPool(nn.Module):
    """Maps ``[rows, c, ...]`` with one to three axes behind the channels, pooled to ``[rows, c, *sides]``.

    Args:
        sides: Of the result.
        rms: By the root of the mean square of each region; otherwise by its average.
    """

    def __init__(self, sides: Sequence[int], rms: bool) -> None:
        super().__init__()
        self.sides, self.rms = tuple(sides), rms

    def forward(self, x: Tensor) -> Tensor:
        poolings: tuple[Any, ...] = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
        average = poolings[len(self.sides) - 1]
        found: Tensor = average(widened(x).square() if self.rms else x, self.sides)
        # The root has no finite slope at 0, where a region is dead.
        return (found + 1e-12).sqrt() if self.rms else found

    def extra_repr(self) -> str:
        return f"sides={self.sides}, rms={self.rms}"


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.relu()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class StraightThroughReLU(nn.Module):
    """ReLU forward, identity backward: a dead unit still feels the peer term that would revive it.

    For a goodness of squares its gradient equals the plain ReLU's, since d(z^2)/dz is 0 where z is 0.
    """

    def forward(self, x: Tensor) -> Tensor:
        return _StraightThrough.apply(x)  # type: ignore[no-any-return]
