"""Types of command-line options, for argparse."""

from __future__ import annotations

import argparse
import math


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, not {text!r}")
    return int(text)


def seconds(text: str) -> float:
    """A finite number of seconds."""
    try:
        length = float(text)
    except ValueError:
        length = math.nan
    if not 0 <= length < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of seconds of at least 0, not {text!r}")
    return length


def share(text: str) -> float:
    """A number between 0 and 1."""
    number = seconds(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, not {text!r}")
    return number
