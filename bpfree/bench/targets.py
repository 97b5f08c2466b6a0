"""What it took to reach a target of the metric, read from the curves."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bpfree.bench.arms import Arm
from bpfree.bench.measures import COSTS, Measure, cpu_seconds, train_flops
from bpfree.bench.metric import metric_of
from bpfree.bench.results import Row

#: The costs that a curve tells of.
CURVE_COSTS = ("train_flops", "train_s", "train_cpu_s", "energy_j")


@dataclass(frozen=True)
class Reached:
    """What it took a run to reach a target."""

    step: float
    train_s: float | None
    train_cpu_s: float | None
    train_flops: float | None
    energy_j: float | None


def to_target(row: Row, target: float) -> Reached | None:
    """The cost at the first of two evaluations in a row that reach ``target``, a value of the metric on
    validation data.

    Returns:
        None for a run that never did: a miss is a miss, and no number.
    """
    points, metric = row["curve"], metric_of(row)
    for point, following in itertools.pairwise(points):
        if metric.reaches(point[1], target) and metric.reaches(following[1], target):
            flops, cpu = flops_until(row, point[0]), cpu_until(row, point[0])
            return Reached(point[0], seconds_at(row, point), cpu, flops, joules_at(point))
    return None


def flops_until(row: Row, step: float) -> float | None:
    """FLOPs of the training up to a step; None for several stages, whose steps are not alike."""
    return _share(row, step, train_flops(row))


def cpu_until(row: Row, step: float) -> float | None:
    """CPU seconds of the training up to a step, if each took as long as another; None for several stages."""
    return _share(row, step, cpu_seconds(row))


def _share(row: Row, step: float, total: float | None) -> float | None:
    return None if total is None or row["budget"]["stages"] > 1 else total * step / row["budget"]["steps"]


def seconds_at(row: Row, point: Sequence[float]) -> float | None:
    """Seconds of training up to a point of a curve; None if the run was stopped and resumed."""
    return float(point[2]) if row.get("segments", 1) == 1 else None


def joules_at(point: Sequence[float]) -> float | None:
    """Joules up to a point of a curve, where they were metered."""
    return float(point[3]) if len(point) > 3 else None


def at_target(target: float, cost: str) -> Measure:
    """What it took to reach a target, as a measure; None for a run that never did."""

    def read(row: Row) -> float | None:
        reached = to_target(row, target)
        return None if reached is None else getattr(reached, cost)

    return replace(COSTS[cost], id=f"{cost} to {target:g}", read=read, counted=False)


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
    train_cpu_s: float | None
    train_flops: float | None
    energy_j: float | None


def target_cost(arm: Arm, target: float) -> TargetCost:
    """The cost of an arm to a target, over its seeds."""
    found = [to_target(row, target) for row in arm.rows]

    def median(name: str) -> float | None:
        reached = [getattr(one, name) for one in found if one is not None]
        if None in reached or not COSTS[name].uniform(arm):
            return None
        value = statistics.median([*reached, *[math.inf] * (len(found) - len(reached))])
        return value if math.isfinite(value) else None

    hits = sum(one is not None for one in found)
    medians = {name: median(name) for name in CURVE_COSTS}
    return TargetCost(target, hits, len(found), **medians)
