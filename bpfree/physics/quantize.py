"""Uniform quantization, as in analog-to-digital and digital-to-analog converters."""

from __future__ import annotations

import torch
from torch import Tensor

from bpfree._errors import BadValue


def check_bits(**bits: int | None) -> None:
    """Check numbers of bits; None means no quantization.

    Raises:
        BadValue: If a number is below 1.
    """
    for name, value in bits.items():
        if value is not None and value < 1:
            raise BadValue(f"{name} = {value}: expected at least 1 bit, or None for no quantization")


def quantize(
    x: Tensor, bits: int | None, low: float, high: float, *, straight_through: bool = False
) -> Tensor:
    """Clip ``x`` to [low, high] and round it to one of 2^bits levels, both ends included.

    Args:
        x: Values.
        bits: Resolution; None: clip only.
        low, high: Range.
        straight_through: Whether the gradient is that of clipping without rounding (straight-through
            estimator). It is 0 outside the range, and 1 at its ends, which binary drives use.
    """
    clipped = x.clamp(low, high)
    if x.requires_grad:
        # In some versions of torch, the gradient of clamp is 0 at the ends.
        clipped = torch.where((x < low) | (x > high), clipped.detach(), x)
    if bits is None:
        return clipped
    step = (high - low) / (2**bits - 1)
    rounded: Tensor = (clipped - low).div_(step).round_().mul_(step).add_(low)
    if straight_through and x.requires_grad:
        rounded = clipped + (rounded - clipped).detach()
    return rounded
