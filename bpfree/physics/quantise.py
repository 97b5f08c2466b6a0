"""Digital converters: a range in 2^bits levels."""

from __future__ import annotations

import torch
from torch import Tensor

from bpfree._errors import BadValue


def check_bits(**bits: int | None) -> None:
    """Raise BadValue for a number of bits below 1; None stands for no quantisation."""
    for name, value in bits.items():
        if value is not None and value < 1:
            raise BadValue(f"{name} = {value}: expected at least 1 bit, or None for no quantisation")


def quantise(
    x: Tensor, bits: int | None, low: float, high: float, *, straight_through: bool = False
) -> Tensor:
    """``x`` clipped to [low, high] and rounded to one of 2^bits levels, ends included; None: only clipped.

    ``straight_through`` passes the gradient on as if nothing had been rounded; what is clipped has none. At
    the ends of the range it passes, for that is where binary drives are.
    """
    clipped = x.clamp(low, high)
    if x.requires_grad:
        # clamp's own gradient at the ends is 0 in some versions of torch.
        clipped = torch.where((x < low) | (x > high), clipped.detach(), x)
    if bits is None:
        return clipped
    step = (high - low) / (2**bits - 1)
    rounded = low + step * torch.round((clipped - low) / step)
    if straight_through and x.requires_grad:
        return clipped + (rounded - clipped).detach()  # type: ignore[no-any-return]
    return rounded  # type: ignore[no-any-return]
