"""Protocol B, matched passes: the cells that run after protocol A, and their epochs.

Under protocol A, own convergence, every arm stops by the same rule. Under protocol B, matched passes, every
arm but backpropagation gets as many passes over the data as backpropagation took, divided among its stages,
without early stopping.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from bpfree._errors import BadValue
from bpfree.bench.arms import Arm, groups, is_baseline
from bpfree.bench.cells import Cell
from bpfree.bench.files import Values
from bpfree.bench.results import Row


def has_matched(config: Values, cells: Sequence[Cell]) -> bool:
    """Whether a config has protocol B after protocol A.

    Raises:
        BadValue: For other protocols, or if an arm has no stop rule, or no baseline on the same net.
    """
    protocols = config.get("protocols", ["A"])
    if protocols == ["A"]:
        return False
    if protocols != ["A", "B"]:
        raise BadValue(f"protocols = {protocols}: expected [A], or [A, B], as B needs the passes of A")
    for cell in cells:
        if cell.fit.patience is None:
            raise BadValue(
                f"protocols = [A, B]: {cell.arm} has no stop rule, so it does not converge; "
                "give fit.patience, for example 20"
            )
        if not any(is_baseline(other.trainer.record()) and other.net == cell.net for other in cells):
            raise BadValue(
                f"protocols = [A, B]: {cell.arm} has no backprop arm on its net to match the passes of; "
                "add one under controls"
            )
    return True


def matched(cells: Sequence[Cell], rows: Sequence[Row]) -> list[Cell]:
    """The cells of protocol B, for cells of protocol A and their rows, in the same order.

    An arm gets ``ceil(mean over seeds of backpropagation's passes / number of stages)`` epochs per stage.
    Arms without a successful seed, whose number of stages is unknown, and arms without a baseline are
    omitted.
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
    """Passes over the training data, as a mean over the seeds."""
    passes = arm.by_seed("budget", "passes")
    return sum(passes.values()) / len(passes)


def arm_id(cell: Cell) -> str:
    """An id that is the same for all model and device seeds of an arm."""
    return replace(cell, seed=0, device_seed=None if cell.device_seed is None else 0).id
