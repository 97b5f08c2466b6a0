"""What a run is told, and where it stands."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Window = Callable[[str], AbstractContextManager[Any]]


class Carried(Protocol):
    """Something whose state travels in the checkpoints, such as a stopwatch."""

    def state(self) -> dict[str, Any]:
        """A JSON-able state."""

    def load(self, state: dict[str, Any]) -> None:
        """Take up a state."""


@dataclass(frozen=True)
class Checkpoint:
    """Where, and how often, a run leaves its state.

    Attributes:
        path: The file; an existing one of the same run is taken up. At the end it holds the finished run.
        every_s: Seconds between two writes, at least.
        carried: What else is saved with it.
    """

    path: Path
    every_s: float = 30.0
    carried: Carried | None = None


@dataclass
class Hooks:
    """Who looks on: the windows of a meter, and a progress display."""

    window: Window = lambda name: nullcontext()
    progress: Callable[[int, int, dict[str, Any]], None] = lambda done, of, row: None


@dataclass
class Position:
    """Where a run stands: enough, with the tensors, to go on as if it had never stopped.

    ``best`` is the best validation value of the stage, negated where smaller is better.
    """

    stage: int = 0
    epoch: int = 0
    step: int = 0
    total_steps: int = 0
    best: float = -math.inf
    best_epoch: int = -1
    stale: int = 0
