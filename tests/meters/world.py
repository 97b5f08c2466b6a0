"""A simulated clock, and simulated devices: GPUs with NVML, and RAPL in a folder.

The integral of the power of a device is known in closed form, so that joules are not compared with another
meter.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pynvml
import pytest
import torch

from bpfree.meters import joules as joules_module
from bpfree.meters import measuring
from bpfree.meters import rapl as rapl_module
from bpfree.meters import sampling as sampling_module
from bpfree.meters import sources as sources_module
from bpfree.meters import time as time_module


@dataclass
class Load:
    """Additional power for ``seconds`` after ``begin``, which changes linearly from ``first`` to ``last``."""

    begin: float
    seconds: float
    first: float
    last: float

    def watts(self, t: float) -> float:
        share = (t - self.begin) / self.seconds
        return self.first + (self.last - self.first) * share if 0 <= share < 1 else 0.0

    def joules(self, t: float) -> float:
        elapsed = min(max(t - self.begin, 0.0), self.seconds)
        return self.first * elapsed + (self.last - self.first) * elapsed**2 / (2 * self.seconds)


@dataclass
class FakeGPU:
    """A GPU whose counter is updated in ticks, and whose counter and sensor are exact."""

    uuid: str
    idle_w: float = 80.0
    tick_s: float = 0.1
    name: str = "NVIDIA Test"
    loads: list[Load] = field(default_factory=list)
    busy_until: float = 0.0
    counter_factor: float = 1.0
    counter_offset_mj: int = 123_456_789
    instant: bool = True
    held_power_mw: int | None = None
    mig: int = 0
    virtual: int = 0
    pids: list[int] = field(default_factory=lambda: [os.getpid()])
    throttle: int = 0
    stops_at: float = math.inf
    counter: bool = True
    sensor: bool = True
    lost: bool = False

    def watts(self, t: float) -> float:
        return self.idle_w + sum(load.watts(t) for load in self.loads)

    def joules(self, t: float) -> float:
        return self.idle_w * t + sum(load.joules(t) for load in self.loads)

    def counter_mj(self, t: float) -> int:
        updated = math.floor(min(t, self.stops_at) / self.tick_s + 1e-9) * self.tick_s
        return self.counter_offset_mj + round(self.counter_factor * self.joules(updated) * 1000)


class FakeNVML:
    """The functions of ``pynvml`` that the meters use; all others are not supported."""

    NVMLError = pynvml.NVMLError

    def __init__(self, world: World, gpus: list[FakeGPU]) -> None:
        self.world, self.gpus, self.calls = world, gpus, 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("nvml"):
            getattr(pynvml, name)  # raises if the function does not exist

            def unsupported(*_: object) -> None:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

            return unsupported
        return getattr(pynvml, name)

    def nvmlInit(self) -> None:
        if not self.gpus:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> FakeGPU:
        for gpu in self.gpus:
            if gpu.uuid == uuid:
                return gpu
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGPU:
        return self.gpus[index]

    def nvmlDeviceGetName(self, gpu: FakeGPU) -> str:
        return gpu.name

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: FakeGPU) -> int:
        self.calls += 1
        if gpu.lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        if not gpu.counter:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return gpu.counter_mj(self.world.now)

    def _power_mw(self, gpu: FakeGPU) -> int:
        return round(gpu.watts(self.world.now) * 1000) if gpu.held_power_mw is None else gpu.held_power_mw

    def nvmlDeviceGetPowerUsage(self, gpu: FakeGPU) -> int:
        if not gpu.sensor:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return self._power_mw(gpu)

    def nvmlDeviceGetFieldValues(self, gpu: FakeGPU, fields: list[tuple[int, int]]) -> list[Any]:
        assert fields == [(pynvml.NVML_FI_DEV_POWER_INSTANT, pynvml.NVML_POWER_SCOPE_GPU)]
        code = pynvml.NVML_SUCCESS if gpu.instant and gpu.sensor else pynvml.NVML_ERROR_NOT_SUPPORTED
        return [SimpleNamespace(nvmlReturn=code, value=SimpleNamespace(uiVal=self._power_mw(gpu)))]

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"999.1"

    def nvmlDeviceGetEnforcedPowerLimit(self, gpu: FakeGPU) -> int:
        return 700_000

    def nvmlDeviceGetTemperature(self, gpu: FakeGPU, sensor: int) -> int:
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return 40 if gpu.watts(self.world.now) <= gpu.idle_w else 60

    def nvmlDeviceGetClockInfo(self, gpu: FakeGPU, clock: int) -> int:
        assert clock == pynvml.NVML_CLOCK_SM
        return 1980

    def nvmlDeviceGetUtilizationRates(self, gpu: FakeGPU) -> Any:
        return SimpleNamespace(gpu=100 if gpu.watts(self.world.now) > gpu.idle_w else 0)

    def nvmlDeviceGetCurrentClocksEventReasons(self, gpu: FakeGPU) -> int:
        return gpu.throttle

    def nvmlDeviceGetComputeRunningProcesses(self, gpu: FakeGPU) -> list[Any]:
        return [SimpleNamespace(pid=pid) for pid in gpu.pids]

    def nvmlDeviceGetMigMode(self, gpu: FakeGPU) -> list[int]:
        return [gpu.mig, gpu.mig]

    def nvmlDeviceGetVirtualizationMode(self, gpu: FakeGPU) -> int:
        return gpu.virtual


class World:
    """The clock advances in `sleep` and `synchronize` only. torch's cuda:0 is NVML's *second* GPU."""

    def __init__(self, patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.now = 1000.0
        self.threads: list[Any] = []
        self.rapl: list[FakeRAPL] = []
        self.other = FakeGPU("GPU-00000000-0000-0000-0000-00000000000a", idle_w=55.0)
        self.gpu = FakeGPU("GPU-00000000-0000-0000-0000-00000000000b")
        self.nvml = FakeNVML(self, [self.other, self.gpu])
        self.no_rapl = tmp_path / "no powercap"
        for module in (joules_module, rapl_module, sampling_module, sources_module, time_module):
            patch.setattr(module, "perf_counter", lambda: self.now)
        for module in (joules_module, sampling_module):
            patch.setattr(module, "sleep", self.sleep)
        patch.setattr(
            sources_module, "Repeating", lambda function, period_s: FakeRepeating(self, function, period_s)
        )
        patch.setattr(rapl_module.Domain, "_uj", self._reading(rapl_module.Domain._uj))
        patch.setattr(torch.cuda, "synchronize", self.synchronize)
        patch.setattr(torch.cuda, "is_initialized", lambda: True)
        patch.setattr(torch.cuda, "is_available", lambda: True)
        properties = SimpleNamespace(uuid=self.gpu.uuid.removeprefix("GPU-"))
        patch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        patch.setenv("TMPDIR", str(tmp_path))
        patch.setattr("tempfile.tempdir", None)

    def _reading(self, read: Callable[[Any], int]) -> Callable[[Any], int]:
        """Update the folders before they are read."""

        def read_now(domain: Any) -> int:
            for tree in self.rapl:
                tree.write()
            return read(domain)

        return read_now

    def sleep(self, seconds: float) -> None:
        """Advance the clock, and call the functions of `FakeRepeating` when they are due."""
        end = self.now + seconds
        while self.threads and min(a.due for a in self.threads) <= end:
            nearest = min(self.threads, key=lambda a: a.due)
            self.now = max(self.now, nearest.due)
            nearest.call()
        self.now = end

    def launch(self, seconds: float, first: float, last: float | None = None) -> None:
        """Queue work on the GPU and return at once, like a kernel launch."""
        begin = max(self.now, self.gpu.busy_until)
        self.gpu.loads.append(Load(begin, seconds, first, first if last is None else last))
        self.gpu.busy_until = begin + seconds

    def synchronize(self, device: object = None) -> None:
        """Wait until the queued work has finished."""
        self.sleep(max(0.0, self.gpu.busy_until - self.now))

    def energy(self, **options: Any) -> Any:
        """`bpfree.meters.energy` of the simulated cuda:0."""
        return measuring.energy("cuda:0", **{"rapl_root": self.no_rapl, "nvml": self.nvml} | options)

    def meter(self, **options: Any) -> Any:
        """`bpfree.meters.meter` of the simulated cuda:0."""
        return measuring.meter("cuda:0", **{"rapl_root": self.no_rapl, "nvml": self.nvml} | options)


class FakeRepeating:
    """Replaces `Repeating` by calls on the simulated clock."""

    def __init__(self, world: World, function: Any, period_s: float) -> None:
        self.world, self.function, self.period_s = world, function, period_s
        self.due = world.now + period_s
        self.error: Exception | None = None
        world.threads.append(self)

    def call(self) -> None:
        self.due += self.period_s
        self.function()

    def check(self) -> None:
        pass

    def stop(self) -> None:
        if self in self.world.threads:
            self.world.threads.remove(self)


class FakeRAPL:
    """A folder like ``/sys/class/powercap``, updated before each reading."""

    #: Domains that must not be counted: a part of the package, a domain that contains it, and a second
    #: interface.
    OVERLAPPING: ClassVar = {
        "intel-rapl:0:0": "core",
        "intel-rapl:1": "psys",
        "intel-rapl-mmio:0": "package-0",
    }

    def __init__(
        self,
        world: World,
        root: Path,
        watts: dict[str, float],
        offset_uj: int = 0,
        range_uj: int = 65_532_610_987,
    ) -> None:
        self.world, self.root, self.begin = world, root, world.now
        self.domains = {
            "intel-rapl:0": ("package-0", watts["package-0"]),
            "intel-rapl:0:1": ("dram", watts["dram"]),
        }
        self.offset_uj, self.range_uj = offset_uj, range_uj
        self.loads: list[Load] = []
        self.written: dict[str, int] = {}
        world.rapl.append(self)
        names = {folder: name for folder, (name, _) in self.domains.items()} | self.OVERLAPPING
        for folder, name in names.items():
            (root / folder).mkdir(parents=True)
            (root / folder / "name").write_text(f"{name}\n")
            (root / folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
            (root / folder / "energy_uj").write_text("1000\n")
        self.write()

    def add(self, after: float, seconds: float, watts: float) -> None:
        """Add power to the package for some seconds."""
        self.loads.append(Load(self.begin + after, seconds, watts, watts))

    def write(self) -> None:
        for folder, (name, watts) in self.domains.items():
            more = 0.0 if name == "dram" else sum(load.joules(self.world.now) for load in self.loads)
            joules = watts * (self.world.now - self.begin) + more
            now = (self.offset_uj + round(joules * 1e6)) % self.range_uj
            if self.written.get(folder) != now:
                (self.root / folder / "energy_uj").write_text(f"{now}\n")
                self.written[folder] = now
