"""Energy of CPU packages and memory by RAPL, from ``/sys/class/powercap`` of Linux."""

from __future__ import annotations

import threading
from pathlib import Path
from time import perf_counter

from bpfree._errors import MeterError, NotMeasurable

ROOT = Path("/sys/class/powercap")

#: RAPL counts microjoules.
MICRO = 1e-6

#: Upper limit of the power of a package; a larger increase means that the counter was reset.
IMPOSSIBLE_W = 5000.0


class Domain:
    """A counter of microjoules, which wraps around at ``max_energy_range_uj`` (if the file exists)."""

    def __init__(self, folder: Path) -> None:
        kind = (folder / "name").read_text().strip()
        # The memory of every package has the name "dram"; its number is in the folder name, intel-rapl:N:M.
        self.name = kind if "-" in kind else f"{kind}-{folder.name.split(':')[1]}"
        self._file = folder / "energy_uj"
        try:
            self._range = int((folder / "max_energy_range_uj").read_text())
        except (OSError, ValueError):
            self._range = 0  # unknown: a counter that wraps around raises, as one that was reset
        self._joules, self._lock = 0.0, threading.Lock()
        self._last, self._at = self._uj(), perf_counter()

    def joules(self) -> float:
        """Return the joules since the object was created. Thread-safe.

        It must be called before the counter wraps around twice.

        Raises:
            MeterError: If the counter cannot be read, or was reset.
        """
        with self._lock:
            now, at = self._uj(), perf_counter()
            grown = now - self._last
            if grown < 0:
                grown += self._range
            # Between two readings the counter may increase by one update, of some milliseconds.
            if grown < 0 or grown * MICRO > IMPOSSIBLE_W * max(at - self._at, 0.01):
                raise MeterError(
                    f"{self._file} went from {self._last} to {now} in {at - self._at:.3f} s: "
                    "this is more than the power of any package, so the counter was reset"
                    f"{'' if self._range else ', or wrapped around at an unknown value'}; "
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
    """Return the domains of the packages and of the memory, which do not overlap.

    Not returned: parts of a package (core, uncore), a domain that contains the packages (psys), and a second
    interface to a package (intel-rapl-mmio).

    Raises:
        NotMeasurable: If there is no domain, or it cannot be read. The message contains the fix.

    Source: Linux, Documentation/power/powercap/powercap.rst.
    """
    if not root.is_dir():
        raise NotMeasurable(
            f"{root} does not exist: RAPL is not available in virtual machines and most containers; "
            "on a physical machine, load the module intel_rapl_common, or mount the folder read-only"
        )
    result = []
    for folder in sorted(root.glob("intel-rapl:*")):
        kind = _name(folder).partition("-")[0]
        if kind in ("package", "dram"):
            result.append(_readable(folder))
    if not result:
        raise NotMeasurable(f"{root} has no RAPL package; is the module intel_rapl_msr loaded?")
    return result


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
            f"{folder / 'energy_uj'} can be read by root only (since CVE-2020-8694): "
            f"sudo chmod a+r {folder.parent}/intel-rapl:*/energy_uj, which is valid until the next start"
        ) from None
    except OSError as error:
        raise NotMeasurable(f"{folder / 'energy_uj'} cannot be read: {error}") from None
    return Domain(folder)
