"""Small layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x`` in float32 if its dtype is narrower, else ``x``.

    Sums of squares and of probabilities need more than the 8 significant bits of bfloat16.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


#: Types that `at_least_float32` leaves as they are; a test of membership costs no call in a step.
WIDE = frozenset({torch.float32, torch.float64})


class LengthNorm(nn.Module):
    """Divides each row by its root mean square, so that the next block cannot read the length of a row.

    ``v -> v / (sqrt(mean_j v_j^2) + eps)`` over all axes but the first. Shapes of input and output:
    ``[rows, ...]``. Without it, a Forward-Forward block could read the goodness of the block below
    (Hinton, arXiv 2212.13345).
    """

    def __init__(self, eps: float = 1e-8) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype not in WIDE:
            x = at_least_float32(x)
        rms = x.flatten(1).square().mean(1).sqrt()
        return x / (rms.view(-1, *[1] * (x.dim() - 1)) + self.eps)


class RowNorm(nn.Module):
    """Layer normalization without parameters, over all axes but the first.

    ``v -> (v - mean(v)) / sqrt(var(v) + eps)``. Shapes of input and output: ``[rows, ...]``.
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(at_least_float32(x), x.shape[1:], eps=self.eps)


class RootMeanSquarePool(nn.Module):
    """Pools maps ``[rows, c, h, w]`` to ``[rows, c, side, side]`` by the root mean square of each region."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(at_least_float32(x).square(), self.side).sqrt()


class FeaturesFirst(nn.Module):
    """Moves the last axis to the position of channels: ``[rows, ..., c]`` to ``[rows, c, ...]``."""

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(-1, 1)


class MapPool(nn.Module):
    """Pools maps ``[rows, c, ...]`` with one to three spatial axes to ``[rows, c, *sides]``.

    Args:
        sides: Spatial sizes of the output.
        rms: Pool by the root mean square of each region if True, else by the average.
    """

    def __init__(self, sides: Sequence[int], rms: bool) -> None:
        super().__init__()
        self.sides, self.rms = tuple(sides), rms

    def forward(self, x: Tensor) -> Tensor:
        poolings: tuple[Callable[..., Tensor], ...] = (
            F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
        )  # fmt: skip
        average = poolings[len(self.sides) - 1]
        pooled = average(at_least_float32(x).square() if self.rms else x, self.sides)
        # The derivative of the square root is infinite at 0, the value of a region without activity.
        return (pooled + 1e-12).sqrt() if self.rms else pooled

    def extra_repr(self) -> str:
        return f"sides={self.sides}, rms={self.rms}"


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        return x.relu()

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> Tensor:
        return grad_outputs[0]


class StraightThroughReLU(nn.Module):
    """ReLU in the forward pass, identity in the backward pass, so that dead units receive a gradient.

    The peer term of the Forward-Forward loss can thus activate them again. For a goodness of squares, the
    gradient equals that of the plain ReLU, because d(z^2)/dz is 0 where z is 0.
    """

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = _StraightThrough.apply(x)
        return output
