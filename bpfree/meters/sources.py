"""Where joules come from. A source gives quantities that only grow, and says what they are."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from bpfree._errors import MeterError
from bpfree.meters import rapl
from bpfree.meters.nvml import SLOWED, Device
from bpfree.meters.sampling import PowerIntegral, Repeating, measure_tick

#: The rate below which an integral of power is not worth comparing with.
LEAST_HZ = 10.0


class GPU:
    """A GPU: NVML's counter of energy, and beside it the integral of sampled power.

    Args:
        device: a CUDA device of torch.
        nvml: stands for the module ``pynvml``.

    Raises:
        NotMeasurable: it has no counter, or NVML cannot be used.
        MeterError: its counter stands still.
    """

    name = "gpu"
    scope = "measured:nvml_counter"
    period_s = 0.05

    def __init__(self, device: torch.device | str, nvml: Any = None) -> None:
        self.device = Device(device, nvml)
        self.tick_s = measure_tick(self.device.energy_j)
        self.identity, self._constant = self.device.uuid, self.device.identity()
        self._zero = self._last = self.device.energy_j()
        self.power = PowerIntegral(self.device.power_w) if self.device.has_power else None
        self._before = self._after = self.device.state()
        self._looked = perf_counter()
        self._sums: dict[str, list[float]] = {"utilisation": [], "clock_mhz": []}
        self._throttle: set[str] = set()
        self._foreign: set[int] = set()
        self._note(self._before)
        self._thread = Repeating(self._ask, self.period_s)

    def read(self) -> dict[str, float]:
        """Joules of the counter and, if the device has a sensor of power, of the integral, and the number of
        samples, since this was made.

        Raises:
            MeterError: the counter went backwards, or the device stopped answering.
        """
        self._thread.check()
        try:
            joules, sample = self.device.energy_j(), self.power.sample() if self.power else None
        except self.device.errors as error:
            raise MeterError(f"{self._constant['name']} stopped answering: {error}") from error
        if joules < self._last:
            raise MeterError(
                f"the energy counter of {self._constant['name']} went back from {self._last} to {joules} J: "
                "the driver was loaded anew, or the GPU reset; measure again"
            )
        self._last = joules
        grown = {"joules": joules - self._zero}
        return grown if sample is None else grown | {"integral": sample[0], "samples": sample[1]}

    def _ask(self) -> None:
        if self.power:
            self.power.sample()
        if perf_counter() - self._looked >= 1.0:
            self._looked = perf_counter()
            self._note(self.device.state())

    def _note(self, state: dict[str, Any]) -> None:
        self._after = state
        for key, values in self._sums.items():
            if key in state:
                values.append(state[key])
        self._throttle.update(state.get("throttle", ()))
        self._foreign.update(state.get("foreign_pids", ()))

    def close(self) -> None:
        """Stop sampling."""
        self._thread.stop()

    def facts(self) -> dict[str, Any]:
        """What the device was, and what it was like, from beginning to end."""
        found = dict(self._constant)
        used, clock = self._sums["utilisation"], self._sums["clock_mhz"]
        if used:
            found |= {"util_mean": sum(used) / len(used), "util_max": max(used)}
        if clock:
            found |= {"clock_mean_mhz": sum(clock) / len(clock), "clock_min_mhz": min(clock)}
        if "temperature" in self._before:
            found["temp_before"] = self._before["temperature"]
            found["temp_after"] = self._after["temperature"]
        if "throttle" in self._before:
            found["throttle"] = sorted(self._throttle)
        if "foreign_pids" in self._before:
            found["foreign_pids"] = sorted(self._foreign)
        return found

    def taints(self) -> list[str]:
        """Why no figure of this source can be taken for this program's own."""
        found = self.device.shared()
        if self._foreign:
            found.append(f"other processes used the GPU: {sorted(self._foreign)}")
        if self.power and self.power.stuck():
            found.append(f"the power sensor stood at {self.power.watts[0]} W all the time")
        return found

    def warnings(self) -> list[str]:
        """What a reader of the figures should know."""
        slowed = sorted(self._throttle & set(SLOWED))
        found = [f"the GPU was slowed down: {', '.join(slowed)}"] if slowed else []
        if self.power is None:
            found.append("no sampled power is recorded beside the counter: the device has no sensor of power")
        if "foreign_pids" not in self._before:
            found.append("whether other processes used the GPU is not known: the driver does not tell")
        return found


class CPU:
    """The packages of this machine and their memory by RAPL: all that runs there, not this program alone.

    Args:
        root: the folder of the power capping framework.

    Raises:
        NotMeasurable: there is no RAPL, or it may not be read.
        MeterError: its counters stand still.
    """

    name = identity = "cpu"
    scope = "measured:rapl"
    period_s = 1.0

    def __init__(self, root: Path = rapl.ROOT) -> None:
        self.domains = rapl.domains(root)
        self.tick_s = measure_tick(self.domains[0].joules)
        self._zero = [domain.joules() for domain in self.domains]
        # A counter must be read before it comes round a second time.
        self._thread = Repeating(self.read_domains, self.period_s)

    def read_domains(self) -> list[float]:
        """Joules of each domain."""
        return [domain.joules() for domain in self.domains]

    def read(self) -> dict[str, float]:
        """Joules of all domains together and of each, since this was made.

        Raises:
            MeterError: a counter cannot be read any more, or was set back.
        """
        self._thread.check()
        grown = [now - zero for now, zero in zip(self.read_domains(), self._zero, strict=True)]
        return {"joules": sum(grown)} | {
            d.name: joules for d, joules in zip(self.domains, grown, strict=True)
        }

    def close(self) -> None:
        """Stop reading."""
        self._thread.stop()

    def facts(self) -> dict[str, Any]:
        """Which domains there are."""
        return {"domains": [domain.name for domain in self.domains]}

    def taints(self) -> list[str]:
        """None: RAPL tells nothing of who used the energy."""
        return []

    def warnings(self) -> list[str]:
        """None."""
        return []
