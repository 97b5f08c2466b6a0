"""Sources of energy readings: a GPU by NVML, and the CPU packages by RAPL."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import torch

from bpfree._errors import MeterError
from bpfree.meters import rapl
from bpfree.meters.nvml import SLOWED, Facts, GPUState, Nvml, NvmlDevice
from bpfree.meters.sampling import PowerIntegral, Repeating, measure_tick

#: Lowest sampling rate in hertz at which the integral of power is compared with the counter.
LEAST_HZ = 10.0


class GPU:
    """A GPU: the energy counter of NVML, and the integral of sampled power.

    Args:
        device: A CUDA device of torch.
        nvml: A replacement of the module ``pynvml``.

    Raises:
        NotMeasurable: If the GPU has no counter, or NVML cannot be used.
        MeterError: If the counter does not change.
    """

    name = "gpu"
    scope = "measured:nvml_counter"
    period_s = 0.05

    def __init__(self, device: torch.device | str, nvml: Nvml = None) -> None:
        self.device = NvmlDevice(device, nvml)
        self.tick_s = measure_tick(self.device.energy_j)
        self.identity, self._constant = self.device.uuid, self.device.identity()
        self._zero = self._last = self.device.energy_j()
        self.power = PowerIntegral(self.device.power_w) if self.device.has_power else None
        self._before = self._after = self.device.state()
        self._state_time = perf_counter()
        self._sums: dict[str, list[float]] = {"utilization": [], "clock_mhz": []}
        self._throttle: set[str] = set()
        self._foreign: set[int] = set()
        self._add_state(self._before)
        self._thread = Repeating(self._sample, self.period_s)

    def read(self) -> dict[str, float]:
        """Return the quantities since the object was created.

        Returns:
            ``joules`` of the counter and, if the GPU has a power sensor, ``integral`` in joules and the
            number of ``samples``.

        Raises:
            MeterError: If the counter has decreased, or the GPU cannot be read.
        """
        self._thread.check()
        try:
            joules, sample = self.device.energy_j(), self.power.sample() if self.power else None
        except self.device.errors as error:
            raise MeterError(f"{self._constant['name']} cannot be read: {error}") from error
        if joules < self._last:
            raise MeterError(
                f"the energy counter of {self._constant['name']} decreased from {self._last} to {joules} J: "
                "the driver was reloaded, or the GPU was reset; measure again"
            )
        self._last = joules
        grown = {"joules": joules - self._zero}
        return grown if sample is None else grown | {"integral": sample[0], "samples": sample[1]}

    def _sample(self) -> None:
        if self.power:
            self.power.sample()
        if perf_counter() - self._state_time >= 1.0:
            self._state_time = perf_counter()
            self._add_state(self.device.state())

    def _add_state(self, state: GPUState) -> None:
        self._after = state
        for key, values in self._sums.items():
            if key in state:
                values.append(state[key])
        self._throttle.update(state.get("throttle", ()))
        self._foreign.update(state.get("foreign_pids", ()))

    def close(self) -> None:
        """Stop sampling."""
        self._thread.stop()

    def facts(self) -> Facts:
        """Return the properties of the GPU, and its states during the measurement."""
        values = dict(self._constant)
        used, clock = self._sums["utilization"], self._sums["clock_mhz"]
        if used:
            values |= {"util_mean": sum(used) / len(used), "util_max": max(used)}
        if clock:
            values |= {"clock_mean_mhz": sum(clock) / len(clock), "clock_min_mhz": min(clock)}
        if "temperature" in self._before:
            values["temp_before"] = self._before["temperature"]
            values["temp_after"] = self._after["temperature"]
        if "throttle" in self._before:
            values["throttle"] = sorted(self._throttle)
        if "foreign_pids" in self._before:
            values["foreign_pids"] = sorted(self._foreign)
        return values

    def taints(self) -> list[str]:
        """Return reasons why the readings are not those of this process."""
        reasons = self.device.shared()
        if self._foreign:
            reasons.append(f"other processes used the GPU: {sorted(self._foreign)}")
        if self.power and self.power.stuck():
            reasons.append(f"the power sensor always showed {self.power.watts[0]} W")
        return reasons

    def warnings(self) -> list[str]:
        """Return warnings about the readings."""
        slowed = sorted(self._throttle & set(SLOWED))
        warnings = [f"the GPU was slowed down: {', '.join(slowed)}"] if slowed else []
        if self.power is None:
            warnings.append("the counter is not compared with sampled power: the device has no power sensor")
        if "foreign_pids" not in self._before:
            warnings.append("the driver does not provide the processes, so others may have used the GPU")
        return warnings


class CPU:
    """The CPU packages of this machine and their memory by RAPL, including all other processes.

    Args:
        root: Folder of the power capping framework.

    Raises:
        NotMeasurable: If there is no RAPL, or it cannot be read.
        MeterError: If the counters do not change.
    """

    name = identity = "cpu"
    scope = "measured:rapl"
    period_s = 1.0

    def __init__(self, root: Path = rapl.ROOT) -> None:
        self.domains = rapl.domains(root)
        self.tick_s = measure_tick(self.domains[0].joules)
        self._zero = [domain.joules() for domain in self.domains]
        # A counter must be read before it wraps around twice.
        self._thread = Repeating(self.read_domains, self.period_s)

    def read_domains(self) -> list[float]:
        """Return the joules of each domain."""
        return [domain.joules() for domain in self.domains]

    def read(self) -> dict[str, float]:
        """Return the ``joules`` of all domains together, and of each by name, since the object was created.

        Raises:
            MeterError: If a counter cannot be read, or was reset.
        """
        self._thread.check()
        grown = [now - zero for now, zero in zip(self.read_domains(), self._zero, strict=True)]
        return {"joules": sum(grown)} | {
            d.name: joules for d, joules in zip(self.domains, grown, strict=True)
        }

    def close(self) -> None:
        """Stop reading."""
        self._thread.stop()

    def facts(self) -> Facts:
        """Return the names of the domains."""
        return {"domains": [domain.name for domain in self.domains]}

    def taints(self) -> list[str]:
        """Return nothing: RAPL does not distinguish processes."""
        return []

    def warnings(self) -> list[str]:
        """Return nothing."""
        return []
