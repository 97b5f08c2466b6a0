"""Means and intervals over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

S = TypeVar("S", bound=Any)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: The mean.
        half: Half the width of its 95 % t interval; None for a single seed.
        n: Number of seeds.
    """

    mean: float
    half: float | None
    n: int


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % interval (Student's t) of independent values."""
    import numpy as np
    from scipy import stats

    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return Estimate(mean, None, n)
    return Estimate(mean, float(stats.sem(values) * stats.t.ppf(0.975, n - 1)), n)


def paired_difference(ours: Mapping[S, float], theirs: Mapping[S, float]) -> Estimate | None:
    """Estimate of the difference over the seeds that both have; None if there is none."""
    common = sorted(ours.keys() & theirs.keys())
    return estimate([ours[seed] - theirs[seed] for seed in common]) if common else None
