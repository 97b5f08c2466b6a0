"""Blocks that are less accurate than the block below, for trainers and reports."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

#: Smallest drop in accuracy, from one block to the next, that is reported.
DROP = 0.02


def drops(accuracies: Mapping[str, float]) -> list[str]:
    """One sentence for each block whose accuracy is more than `DROP` below that of the previous block.

    Args:
        accuracies: Accuracy of each block by name, bottom first.
    """
    return [
        f"{name} has {100 * accuracy:.1f} %, {100 * (below - accuracy):.1f} points less than {name_below} "
        "below it"
        for (name_below, below), (name, accuracy) in pairwise(accuracies.items())
        if round(below - accuracy, 9) > DROP
    ]
