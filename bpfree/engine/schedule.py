"""Schedules as plans: which blocks train together, one stage after another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bpfree.core.cascade import Cascade
from bpfree.core.readouts import Readout

Schedule = Literal["simultaneous", "greedy", "pipelined"]


@dataclass(frozen=True)
class Stage:
    """Blocks ``first`` to ``stop - 1`` train together; those below are frozen.

    Attributes:
        name: For the history.
        first: Number of the lowest block that trains; all below are frozen.
        stop: One past the highest block that trains, and the number of blocks that exist for readouts.
        readouts: Whether readouts that learn train in this stage.
    """

    name: str
    first: int
    stop: int
    readouts: bool


def plan(schedule: Schedule, cascade: Cascade) -> list[Stage]:
    """The stages of a schedule.

    ``simultaneous``: every block steps on every batch. ``pipelined``: the same, each worker with blocks of
    its own. ``greedy``: block after block, each until it stops; readouts that learn come last, on the frozen
    blocks.
    """
    n = len(cascade.units)
    if schedule != "greedy":
        return [Stage("all blocks", 0, n, True)]
    stages = [Stage(f"block {k + 1}", k, k + 1, False) for k in range(n)]
    if any(r.learns for r in cascade.readouts.values() if isinstance(r, Readout)):
        stages.append(Stage("readout", n, n, True))
    return stages
