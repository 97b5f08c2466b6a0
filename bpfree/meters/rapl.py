"""Energy of CPU packages and memory by RAPL, as Linux shows it under ``/sys/class/powercap``."""

from __future__ import annotations

import threading
from pathlib import Path
from time import perf_counter

from bpfree._errors import MeterError, NotMeasurable

ROOT = Path("/sys/class/powercap")

#: RAPL counts microjoules.
MICRO = 1e-6

#: No package draws more; a counter that seems to was set back, and did not wrap.
IMPOSSIBLE_W = 5000.0


class Domain:
    """One counter of microjoules, which begins anew at ``max_energy_range_uj``, where the system gives it."""

    def __init__(self, folder: Path) -> None:
        kind = (folder / "name").read_text().strip()
        # Every package calls its memory "dram"; its number stands in the folder's name, intel-rapl:N:M.
        self.name = kind if "-" in kind else f"{kind}-{folder.name.split(':')[1]}"
        self._file = folder / "energy_uj"
        try:
            self._range = int((folder / "max_energy_range_uj").read_text())
        except (OSError, ValueError):
            self._range = 0  # not told: a counter that comes round is then an error, as one set back is
        self._joules, self._lock = 0.0, threading.Lock()
        self._last, self._at = self._uj(), perf_counter()

    def joules(self) -> float:
        """Joules since this object was made, from any thread; ask before the counter comes round twice.

        Raises:
            MeterError: the counter cannot be read any more, or was set back.
        """
        with self._lock:
            now, at = self._uj(), perf_counter()
            grown = now - self._last
            if grown < 0:
                grown += self._range
            # A counter that ticks may add a whole tick, some milliseconds, from one reading to the next.
            if grown < 0 or grown * MICRO > IMPOSSIBLE_W * max(at - self._at, 0.01):
                raise MeterError(
                    f"{self._file} went from {self._last} to {now} in {at - self._at:.3f} s: "
                    "no package draws so much, so the counter was set back"
                    f"{'' if self._range else ', or came round at a value that the system does not tell'}; "
                    "measure again"
                )
            self._joules += grown * MICRO
            self._last, self._at = now, at
            return self._joules

    def _uj(self) -> int:
        try:
            return int(self._file.read_text())
        except (OSError, ValueError) as error:
            raise MeterError(f"{self._file} cannot be read: {error}") from None


def domains(root: Path = ROOT) -> list[Domain]:
    """The packages and the memory beside them, which no other domain counts.

    Left out are what is part of a package (core, uncore), what contains it (psys), and the
    second view of a package through memory-mapped registers (intel-rapl-mmio).

    Raises:
        NotMeasurable: there is none, or it may not be read; the message says what to do.

    Source: Linux, Documentation/power/powercap/powercap.rst.
    """
    if not root.is_dir():
        raise NotMeasurable(
            f"{root} does not exist: RAPL is not shown to virtual machines and most containers; "
            "on a machine of your own, load the module intel_rapl_common, or mount the folder read-only"
        )
    found = []
    for folder in sorted(root.glob("intel-rapl:*")):
        kind = _name(folder).partition("-")[0]
        if kind in ("package", "dram"):
            found.append(_readable(folder))
    if not found:
        raise NotMeasurable(f"{root} has no package that RAPL meters; is the module intel_rapl_msr loaded?")
    return found


def _name(folder: Path) -> str:
    try:
        return (folder / "name").read_text().strip()
    except OSError:
        return ""


def _readable(folder: Path) -> Domain:
    try:
        (folder / "energy_uj").read_text()
    except PermissionError:
        raise NotMeasurable(
            f"{folder / 'energy_uj'} may be read by root alone (since CVE-2020-8694): "
            f"sudo chmod a+r {folder.parent}/intel-rapl:*/energy_uj, which holds until the next start"
        ) from None
    except OSError as error:
        raise NotMeasurable(f"{folder / 'energy_uj'} cannot be read: {error}") from None
    return Domain(folder)
