"""Periodic sampling in a thread, the integral of power, and the update interval of a counter."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable
from time import perf_counter, sleep

from bpfree._errors import MeterError


class Repeating:
    """Calls a function every ``period_s`` seconds in a separate thread, until `stop` is called.

    Args:
        function: Function without tensor operations. An exception ends the thread and is raised by `check`.
        period_s: Period in seconds; missed calls are not repeated.
    """

    def __init__(self, function: Callable[[], object], period_s: float) -> None:
        self._function, self._period_s = function, period_s
        self._stopped = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="bpfree-meter", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        due = perf_counter()
        try:
            while not self._stopped.is_set():
                self._function()
                due = max(due + self._period_s, perf_counter())
                self._stopped.wait(due - perf_counter())
        except Exception as error:  # noqa: BLE001 (it is raised in the thread that calls check)
            self._error = error

    def check(self) -> None:
        """Raise an error if an exception has ended the thread.

        Raises:
            MeterError: From the exception.
        """
        if self._error is not None:
            raise MeterError(f"a meter failed: {self._error}") from self._error

    def stop(self) -> None:
        """Stop the thread, and wait until it has ended."""
        self._stopped.set()
        self._thread.join()


class PowerIntegral:
    """The integral of sampled power by the trapezoidal rule.

    Args:
        watts: Function that returns the present power in watts.

    Attributes:
        times, watts: Times in seconds, and watts, of all samples.
    """

    def __init__(self, watts: Callable[[], float]) -> None:
        self._watts = watts
        self._lock = threading.Lock()
        self._joules = 0.0
        self.times, self.watts = array("d"), array("d")

    def sample(self) -> tuple[float, int]:
        """Take a sample; return the joules since the first sample and the number of samples. Thread-safe."""
        with self._lock:
            watts, now = self._watts(), perf_counter()
            if self.times:
                self._joules += (watts + self.watts[-1]) / 2 * (now - self.times[-1])
            self.times.append(now)
            self.watts.append(watts)
            return self._joules, len(self.times)

    def stuck(self, enough: int = 100) -> bool:
        """Return whether at least ``enough`` samples are all the same, as from a broken sensor."""
        with self._lock:
            return len(self.watts) >= enough and min(self.watts) == max(self.watts)


def measure_tick(
    read: Callable[[], float], changes: int = 12, limit_s: float = 3.0, pause_s: float = 5e-4
) -> float:
    """Measure the tick of a counter, the time in seconds between two of its updates.

    A reading is the value of the last update, so the energy of a window has an error of up to one tick at
    each end.

    Raises:
        MeterError: If the counter changed fewer than three times in ``limit_s`` seconds.
    """
    begin = perf_counter()
    last, updates = read(), array("d")
    while len(updates) < changes and perf_counter() - begin < limit_s:
        sleep(pause_s)
        value = read()
        if value != last:
            updates.append(perf_counter())
            last = value
    if len(updates) < 3:
        raise MeterError(
            f"an energy counter changed {len(updates)} times in {limit_s} s: it does not work, or it is "
            "too coarse"
        )
    return (updates[-1] - updates[0]) / (len(updates) - 1)
