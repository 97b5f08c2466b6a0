"""Devices in separate processes: the same results as in this process, and their messages are passed on."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from benchmarks.robustness._case import REFUSED, RIGHT, RIGHT_OR_REFUSED, Case, Cases, Outcome
from benchmarks.robustness._verdict import Watch
from bpfree.physics import Device, DeviceError, ProcessSystem

registry = Cases()

#: A device whose output is the expression in one of its arguments; its first input selects which one.
SCRIPT = """
import os
import sys

import numpy as np

from bpfree.physics import serve


class Box:
    n_in, n_out, input_range = 4, 6, (0.0, 1.0)

    def forward(self, u):
        y = u @ (np.arange(24.0).reshape(4, 6) / 10)
        return eval(sys.argv[1 + round(100 * u[0, 0])])


def fail(error):
    raise error


serve(Box())
"""

ANSWERS: list[tuple[str, str, frozenset[Outcome], str]] = [
    ("as it should", "y", RIGHT, ""),
    ("float32", "y.astype(np.float32)", RIGHT, ""),
    ("not contiguous", "np.asfortranarray(y)", RIGHT, ""),
    ("complex", "y + 1j", REFUSED, ""),
    ("masked", "np.ma.masked_array(y, y > 1)", REFUSED, ""),
    ("strings", "y.astype(str)", REFUSED, ""),
    ("lists", "y.tolist()", RIGHT_OR_REFUSED, ""),
    ("9.91e37 for no number", "np.where(y > 1, 9.91e37, y)", REFUSED, ""),
    ("a row too few", "y[1:]", REFUSED, ""),
    ("turned", "y.T", REFUSED, ""),
    ("an error of its driver", "fail(OSError('VI_ERROR_TMO: timeout expired'))", REFUSED, "VI_ERROR_TMO"),
    ("its process ends", "os._exit(7)", REFUSED, "7"),
]


def _in_process(expression: str) -> Any:
    class Box:
        n_in, n_out, input_range = 4, 6, (0.0, 1.0)

        def forward(self, u: Any) -> Any:
            y = u @ (np.arange(24.0).reshape(4, 6) / 10)
            return eval(expression, {"y": y, "np": np})

    return Box()


def _accepted(make: Callable[[], Device], drive: Any) -> Any:
    """The output; None if it is refused."""
    try:
        return make().forward(drive)
    except (DeviceError, ValueError, TypeError):
        return None


@cache
def _process() -> ProcessSystem:
    """One process for all cases, as the start takes seconds."""
    served = ProcessSystem([sys.executable, "-c", SCRIPT, *(expression for _, expression, *_ in ANSWERS)])
    atexit.register(served.close)
    return served


def _served(number: int) -> None:
    text, expression, expected, mentions = ANSWERS[number]

    @registry.add("ProcessSystem", "forward", f"answers: {text}", expected, mentions)
    def attempt(watch: Watch) -> str | None:
        drive = np.random.default_rng(0).random((5, 4))
        drive[0, 0] = number / 100
        y = Device(_process(), retries=0).forward(drive)
        in_process = _accepted(lambda: Device(_in_process(expression), retries=0), drive)
        if in_process is None:
            return "accepted from a separate process, refused in the same process"
        return None if np.allclose(y, in_process) else "another output than in the same process"


for _number in range(len(ANSWERS)):
    _served(_number)


def cases() -> list[Case]:
    """All cases."""
    return registry.all
