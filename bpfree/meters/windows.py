"""Differences of increasing quantities (clocks, energy counters) over named windows."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from bpfree._errors import BadValue

#: Key of the number of time intervals that a window consists of.
PIECES = "pieces"

Totals = dict[str, dict[str, float]]


def synchronize(device: torch.device | str) -> None:
    """Wait until all work queued on ``device`` has finished; returns at once for a CPU.

    Raises:
        BadValue: If the device is not a CPU, CUDA or MPS device.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    elif device.type != "cpu":
        raise BadValue(f"cannot synchronize a {device.type!r} device; use cpu, cuda or mps")


class Windows:
    """Sums the increase of quantities in named windows.

    Windows of different names may be nested. The increase in an inner window is not counted in the outer one,
    so an evaluation inside a training window is not counted as training. A window that ends by an exception
    is counted as well. An object must be used in one thread only.

    Args:
        device: Torch device, synchronized whenever a window opens or closes, so that queued work is counted
            in the window that has queued it.
        read: Function that returns the present quantities by name, with the same names in each call.
    """

    def __init__(self, device: torch.device | str, read: Callable[[], Mapping[str, float]]) -> None:
        self._device = torch.device(device)
        self._read = read
        self._totals: Totals = {}
        self._open: list[str] = []
        self._since: Mapping[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Context manager: open the window ``name``.

        Raises:
            BadValue: If a window of this name is already open.
        """
        if name in self._open:
            raise BadValue(f"the window {name!r} is already open; windows open now: {self._open}")
        self._update()
        for quantity in (*self._since, PIECES):
            self._totals.setdefault(name, {}).setdefault(quantity, 0.0)
        self._totals[name][PIECES] += 1
        self._open.append(name)
        try:
            yield
        finally:
            try:
                self._update()
            finally:
                # The window must be closed even if the synchronization fails.
                self._open.pop()
                if self._open:
                    self._totals[self._open[-1]][PIECES] += 1

    def totals(self) -> Totals:
        """Return the increase by window and quantity, including open windows."""
        if self._open:
            self._update()
        return {name: dict(grown) for name, grown in self._totals.items()}

    def replace(self, totals: Mapping[str, Mapping[str, float]]) -> None:
        """Replace all totals by those of `totals`, to resume a run.

        Raises:
            BadValue: If a window is open, or a total is negative or not finite.
        """
        if self._open:
            raise BadValue(f"close every window before load(); open now: {self._open}")
        for name, grown in totals.items():
            if not isinstance(grown, Mapping):
                raise BadValue(
                    f"{name!r} = {grown!r}: expected a dict of quantities; it was written by another version"
                )
            for quantity, value in grown.items():
                if not (math.isfinite(value) and value >= 0):
                    raise BadValue(f"{quantity} of {name!r} must be finite and >= 0, got {value!r}")
        self._totals = {name: {q: float(v) for q, v in grown.items()} for name, grown in totals.items()}

    def _update(self) -> None:
        """Add the increase since the last boundary to the innermost open window."""
        synchronize(self._device)
        now = self._read()
        if self._open:
            grown = self._totals[self._open[-1]]
            for quantity, value in now.items():
                grown[quantity] += value - self._since[quantity]
        self._since = now
