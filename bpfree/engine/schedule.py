"""Schedules: the stages of a run, and the blocks that are trained in each stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bpfree.core.cascade import Cascade
from bpfree.core.readouts import Readout

Schedule = Literal["simultaneous", "greedy", "pipelined"]


@dataclass(frozen=True)
class Stage:
    """A part of a run in which blocks ``first`` to ``stop - 1`` are trained; the blocks below are frozen.

    Attributes:
        name: Name in the history.
        first: Index of the lowest block that is trained.
        stop: Index after the highest block that is trained; readouts use the blocks below ``stop``.
        readouts: Whether readouts with parameters are trained.
    """

    name: str
    first: int
    stop: int
    readouts: bool


def plan(schedule: Schedule, cascade: Cascade) -> list[Stage]:
    """Return the stages of a schedule.

    ``simultaneous``: all blocks are updated on each batch. ``pipelined``: the same, with the blocks divided
    among workers. ``greedy``: one block after another; readouts with parameters are trained last, on the
    frozen blocks.
    """
    n = len(cascade.units)
    if schedule != "greedy":
        return [Stage("all blocks", 0, n, True)]
    stages = [Stage(f"block {k + 1}", k, k + 1, False) for k in range(n)]
    if any(r.learns for r in cascade.readouts.values() if isinstance(r, Readout)):
        stages.append(Stage("readout", n, n, True))
    return stages
