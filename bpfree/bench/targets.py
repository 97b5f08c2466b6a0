"""What it took to reach a target accuracy, read off the curves."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bpfree.bench.arms import Arm
from bpfree.bench.measures import train_flops
from bpfree.bench.results import Row

#: The measures that a curve tells of.
COSTS = ("train_flops", "train_s", "energy_j")


@dataclass(frozen=True)
class Reached:
    """What it took a run to reach a target."""

    step: float
    train_s: float
    train_flops: float | None
    energy_j: float | None


def to_target(row: Row, target: float) -> Reached | None:
    """The cost at the first of two evaluations in a row that reach ``target`` (validation accuracy, 0 to 1).

    Returns:
        None for a run that never did: a miss is a miss, and no number.
    """
    points = row["curve"]
    for point, following in itertools.pairwise(points):
        if point[1] >= target and following[1] >= target:
            return Reached(point[0], point[2], flops_until(row, point[0]), joules_at(point))
    return None


def flops_until(row: Row, step: float) -> float | None:
    """FLOPs of the training up to a step; None for several stages, whose steps are not alike."""
    total = train_flops(row)
    return None if total is None or row["budget"]["stages"] > 1 else total * step / row["budget"]["steps"]


def joules_at(point: Sequence[float]) -> float | None:
    """Joules up to a point of a curve, where they were metered."""
    return float(point[3]) if len(point) > 3 else None


@dataclass(frozen=True)
class TargetCost:
    """How an arm did against a target: how many of its seeds reached it, and the medians of what it took.

    A seed that missed counts as infinitely dear, so a median is None where half of the seeds or
    more missed, or where it was not measured.
    """

    target: float
    hits: int
    n: int
    train_s: float | None
    train_flops: float | None
    energy_j: float | None


def target_cost(arm: Arm, target: float) -> TargetCost:
    """The cost of an arm to a target, over its seeds."""
    found = [to_target(row, target) for row in arm.rows]

    def median(name: str) -> float | None:
        reached = [getattr(one, name) for one in found if one is not None]
        if None in reached:
            return None
        value = statistics.median([*reached, *[math.inf] * (len(found) - len(reached))])
        return value if math.isfinite(value) else None

    hits = sum(one is not None for one in found)
    return TargetCost(target, hits, len(found), median("train_s"), median("train_flops"), median("energy_j"))
