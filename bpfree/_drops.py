"""Blocks that are worse than those below, for trainers and for reports of rows."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

#: A block that is worse than the one below by more than this share is noted.
DROP = 0.02


def drops(accuracies: Mapping[str, float]) -> list[str]:
    """A sentence for each block, bottom first, that is more than `DROP` worse than the one below."""
    return [
        f"{name} has {100 * own:.1f} %, {100 * (below - own):.1f} points less than {beneath} below it"
        for (beneath, below), (name, own) in pairwise(accuracies.items())
        if round(below - own, 9) > DROP
    ]
