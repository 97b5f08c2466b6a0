"""How numbers are written in tables."""

from __future__ import annotations

import math


def number(value: float) -> str:
    """Three digits or more, without an exponent where that is readable."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:#.3g}".rstrip(".")


def plus_minus(mean: float, half: float | None) -> str:
    """A mean with the digits that its interval supports: two of the half width."""
    if half is None or half <= 1e-9 * abs(mean):
        return number(mean)
    digits = max(0, 1 - math.floor(math.log10(half)))
    return f"{mean:,.{digits}f} ± {half:,.{digits}f}"
