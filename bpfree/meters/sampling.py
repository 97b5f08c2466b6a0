"""Asking a device again and again: a thread that does, the integral of power, and the tick of a counter."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable
from time import perf_counter, sleep

from bpfree._errors import MeterError


class Repeating:
    """Calls ``ask`` every ``period_s`` seconds in a thread of its own, until it is stopped.

    Args:
        ask: does no tensor work; what it raises ends the thread and is raised again by :meth:`stop`.
        period_s: from call to call; a call that is late is not made up for.
    """

    def __init__(self, ask: Callable[[], object], period_s: float) -> None:
        self._ask, self._period_s = ask, period_s
        self._stopped = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="bpfree-meter", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        due = perf_counter()
        try:
            while not self._stopped.is_set():
                self._ask()
                due = max(due + self._period_s, perf_counter())
                self._stopped.wait(due - perf_counter())
        except Exception as error:  # noqa: BLE001 (it is handed to the thread that asked for the figures)
            self._error = error

    def check(self) -> None:
        """Raise what ended the thread.

        Raises:
            MeterError: the device did not answer.
        """
        if self._error is not None:
            raise MeterError(f"a meter stopped answering: {self._error}") from self._error

    def stop(self) -> None:
        """Stop, and wait until the last call is over."""
        self._stopped.set()
        self._thread.join()


class PowerIntegral:
    """The integral of sampled power by the trapezoidal rule, with the samples kept.

    Args:
        watts: reads the power now.
    """

    def __init__(self, watts: Callable[[], float]) -> None:
        self._watts = watts
        self._lock = threading.Lock()
        self._joules = 0.0
        self.times, self.watts = array("d"), array("d")

    def sample(self) -> tuple[float, int]:
        """Take a sample; returns the joules since the first one, and how many there are. Any thread."""
        with self._lock:
            watts, now = self._watts(), perf_counter()
            if self.times:
                self._joules += (watts + self.watts[-1]) / 2 * (now - self.times[-1])
            self.times.append(now)
            self.watts.append(watts)
            return self._joules, len(self.times)

    def stuck(self, enough: int = 100) -> bool:
        """Whether many samples are all the same, which no sensor of a working device gives."""
        with self._lock:
            return len(self.watts) >= enough and min(self.watts) == max(self.watts)


def measure_tick(
    read: Callable[[], float], changes: int = 12, limit_s: float = 3.0, pause_s: float = 5e-4
) -> float:
    """Seconds from one change of a counter to the next, measured.

    A reading is that of the last change, so an energy over a window is uncertain by a tick at each end.

    Raises:
        MeterError: the counter changed fewer than three times in ``limit_s`` seconds.
    """
    begin = perf_counter()
    last, seen = read(), array("d")
    while len(seen) < changes and perf_counter() - begin < limit_s:
        sleep(pause_s)
        value = read()
        if value != last:
            seen.append(perf_counter())
            last = value
    if len(seen) < 3:
        raise MeterError(
            f"an energy counter changed {len(seen)} times in {limit_s} s: it is dead, or far too coarse"
        )
    return (seen[-1] - seen[0]) / (len(seen) - 1)
