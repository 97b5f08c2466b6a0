"""Wall time by named windows, on a monotonic clock, with the device synchronised at both ends."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter

import torch

from bpfree._errors import BadValue


def synchronize(device: torch.device | str) -> None:
    """Wait until all work queued on ``device`` is done; a CPU queues none.

    Raises:
        BadValue: the device is neither a CPU, a CUDA nor an MPS device.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    elif device.type != "cpu":
        raise BadValue(f"cannot synchronise a {device.type!r} device; use cpu, cuda or mps")


class Stopwatch:
    """Seconds spent in named windows, added up over every time a name is entered.

    Windows of different names may be nested. The time of an inner window is not counted in
    the outer one, so an evaluation inside a training window costs the training nothing::

        watch = Stopwatch("cuda")
        with watch("train"):
            step()
            with watch("eval"):
                evaluate()
        watch.state()  # {"train": ..., "eval": ...}

    A window ended by an exception counts like any other. One stopwatch belongs to one thread.

    Args:
        device: synchronised whenever a window opens or closes, so that queued work is charged
            to the window that queued it.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Open the window ``name`` for the length of a ``with`` block.

        Raises:
            BadValue: a window of this name is already open.
        """
        if name in self._open:
            raise BadValue(f"the window {name!r} is already open; windows open now: {self._open}")
        self._settle()
        self._seconds.setdefault(name, 0.0)
        self._open.append(name)
        try:
            yield
        finally:
            try:
                self._settle()
            finally:
                # A failed synchronisation must not leave the window open for good.
                self._open.pop()

    def state(self) -> dict[str, float]:
        """Seconds by name, those of windows still open included; a name never entered is absent."""
        if self._open:
            self._settle()
        return dict(self._seconds)

    def load(self, state: Mapping[str, float]) -> None:
        """Replace all totals by those of :meth:`state`, to go on where another run stopped.

        Raises:
            BadValue: a window is open, or a total is negative or not finite.
        """
        if self._open:
            raise BadValue(f"close every window before load(); open now: {self._open}")
        for name, seconds in state.items():
            if not (math.isfinite(seconds) and seconds >= 0):
                raise BadValue(f"seconds of {name!r} must be finite and >= 0, got {seconds!r}")
        self._seconds = {name: float(seconds) for name, seconds in state.items()}

    def _settle(self) -> None:
        """Charge the time since the last boundary to the innermost open window."""
        synchronize(self._device)
        now = perf_counter()
        if self._open:
            self._seconds[self._open[-1]] += now - self._since
        self._since = now
