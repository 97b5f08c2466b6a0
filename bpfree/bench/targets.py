"""Costs to reach a target of the metric, from the curves of rows."""

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

#: The costs that are known at the points of a curve.
CURVE_COSTS = ("train_flops", "train_s", "train_cpu_s", "energy_j")


@dataclass(frozen=True)
class Reached:
    """The costs of a run up to a target."""

    step: float
    train_s: float | None
    train_cpu_s: float | None
    train_flops: float | None
    energy_j: float | None


def to_target(row: Row, target: float) -> Reached | None:
    """The cost at the first of two evaluations in a row that reach ``target``, a value of the metric on
    validation data.

    Returns:
        None for a run that missed the target.
    """
    points, metric = row["curve"], metric_of(row)
    for point, following in itertools.pairwise(points):
        if metric.reaches(point[1], target) and metric.reaches(following[1], target):
            flops, cpu = flops_until(row, point[0]), cpu_until(row, point[0])
            return Reached(point[0], seconds_at(row, point), cpu, flops, joules_at(point))
    return None


def flops_until(row: Row, step: float) -> float | None:
    """FLOPs of the training up to a step; None for several stages, whose steps differ."""
    return _share(row, step, train_flops(row))


def cpu_until(row: Row, step: float) -> float | None:
    """CPU seconds of the training up to a step, by the share of steps; None for several stages."""
    return _share(row, step, cpu_seconds(row))


def _share(row: Row, step: float, total: float | None) -> float | None:
    return None if total is None or row["budget"]["stages"] > 1 else total * step / row["budget"]["steps"]


def seconds_at(row: Row, point: Sequence[float]) -> float | None:
    """Seconds of training up to a point of a curve; None if the run was resumed."""
    return float(point[2]) if row.get("segments", 1) == 1 else None


def joules_at(point: Sequence[float]) -> float | None:
    """Joules up to a point of a curve; None if they were not metered."""
    return float(point[3]) if len(point) > 3 else None


def at_target(target: float, cost: str) -> Measure:
    """A cost up to a target as a measure; None for a run that missed the target."""

    def read(row: Row) -> float | None:
        reached = to_target(row, target)
        return None if reached is None else getattr(reached, cost)

    return replace(COSTS[cost], id=f"{cost} to {target:g}", read=read, counted=False)


@dataclass(frozen=True)
class TargetCost:
    """How many seeds of an arm reached a target, and the medians of the costs.

    The cost of a seed that missed the target is infinite, so a median is None if at least half of the seeds
    missed it, or if the cost was not measured.
    """

    target: float
    hits: int
    n: int
    train_s: float | None
    train_cpu_s: float | None
    train_flops: float | None
    energy_j: float | None


def target_cost(arm: Arm, target: float) -> TargetCost:
    """The costs of an arm up to a target, over its seeds."""
    outcomes = [to_target(row, target) for row in arm.rows]

    def median(name: str) -> float | None:
        reached = [getattr(one, name) for one in outcomes if one is not None]
        if None in reached or not COSTS[name].uniform(arm):
            return None
        value = statistics.median([*reached, *[math.inf] * (len(outcomes) - len(reached))])
        return value if math.isfinite(value) else None

    hits = sum(one is not None for one in outcomes)
    medians = {name: median(name) for name in CURVE_COSTS}
    return TargetCost(target, hits, len(outcomes), **medians)
