"""What the values of command-line options must be, for argparse."""

from __future__ import annotations

import argparse
import math


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, not {text!r}")
    return int(text)


def seconds(text: str) -> float:
    """A length of time, finite."""
    try:
        length = float(text)
    except ValueError:
        length = math.nan
    if not 0 <= length < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of seconds of at least 0, not {text!r}")
    return length


def share(text: str) -> float:
    """A number between 0 and 1."""
    found = seconds(text)
    if not 0 < found < 1:
        raise argparse.ArgumentTypeError(f"expected an accuracy between 0 and 1, not {text!r}")
    return found
