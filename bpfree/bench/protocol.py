"""Matched passes: what runs after own convergence, and how many epochs it takes.

Own convergence (A) lets every arm stop by one rule. Matched passes (B) give every other arm the passes over
the data that backpropagation took, shared out among its stages, with no early stop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bpfree._errors import BadValue
from bpfree.bench.arms import Arm, groups, is_baseline
from bpfree.bench.cells import Cell
from bpfree.bench.results import Row


def wants_matched(config: Mapping[str, Any], cells: Sequence[Cell]) -> bool:
    """Whether a config asks for matched passes after own convergence.

    Raises:
        BadValue: If it asks for something else, or its arms cannot be matched: a stop rule and a baseline on
            the same net are needed.
    """
    protocols = config.get("protocols", ["A"])
    if protocols == ["A"]:
        return False
    if protocols != ["A", "B"]:
        raise BadValue(f"protocols = {protocols}: expected [A], or [A, B], as B needs the passes found in A")
    for cell in cells:
        if cell.fit.patience is None:
            raise BadValue(
                f"protocols = [A, B]: {cell.arm} has no stop rule, so no convergence of its own; "
                "give fit.patience, for example 20"
            )
        if not any(is_baseline(other.trainer.record()) and other.net == cell.net for other in cells):
            raise BadValue(
                f"protocols = [A, B]: {cell.arm} has no backprop arm on its net to match the passes of; "
                "add one under controls"
            )
    return True


def matched(cells: Sequence[Cell], rows: Sequence[Row]) -> list[Cell]:
    """The cells of protocol B, for cells of protocol A and the rows that they gave, in the same order.

    An arm takes ``ceil(mean over seeds of backpropagation's passes / number of stages)`` epochs a stage. An
    arm of which no seed succeeded has no known number of stages, and is left out, as is one whose baseline
    failed.
    """
    epochs: dict[str, tuple[float, int]] = {}
    for group in groups(rows):
        if group.baseline is not None:
            passes = mean_passes(group.baseline)
            for arm in group.arms:
                if not arm.is_baseline:
                    stages = max(row["budget"]["stages"] for row in arm.rows)
                    share = passes, math.ceil(passes / stages)
                    epochs |= dict.fromkeys((row["cell_id"] for row in arm.rows), share)
    of_arm = {arm_id(cell): epochs[cell.id] for cell in cells if cell.id in epochs}
    return [
        replace(
            cell,
            fit=replace(cell.fit, epochs=of_arm[arm_id(cell)][1], patience=None),
            matched=of_arm[arm_id(cell)][0],
        )
        for cell in cells
        if arm_id(cell) in of_arm
    ]


def mean_passes(arm: Arm) -> float:
    """Passes over the training data, on average over the seeds."""
    passes = arm.by_seed("budget", "passes")
    return sum(passes.values()) / len(passes)


def arm_id(cell: Cell) -> str:
    """What is the same for all seeds of an arm, the devices' included."""
    return replace(cell, seed=0, device_seed=None if cell.device_seed is None else 0).id
