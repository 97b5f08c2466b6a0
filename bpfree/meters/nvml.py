"""Access to one NVIDIA GPU by NVML. The GPU is identified by its UUID, not by an index."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from bpfree._errors import BadValue, MeterError, NotMeasurable

#: The module ``pynvml``, or an object with its functions.
Nvml: TypeAlias = Any
#: Facts about a device by name.
Facts: TypeAlias = dict[str, object]
#: State of a GPU, see `NvmlDevice.state`.
GPUState: TypeAlias = dict[str, Any]

#: NVML returns energy in millijoules and power in milliwatts.
MILLI = 1e-3

#: Bits of ``nvmlDeviceGetCurrentClocksEventReasons`` (nvml.h, NvmlClocksEventReasons).
THROTTLE = {
    0x001: "gpu_idle",
    0x002: "applications_clocks_setting",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}

#: Reasons that reduce the performance.
SLOWED = ("hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown")

#: Required members of the module; values that need other missing members are absent.
NEEDED = (
    "NVMLError", "nvmlInit", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetName",
    "nvmlDeviceGetTotalEnergyConsumption",
)  # fmt: skip

#: Errors after which the GPU cannot be used.
LOST = ("NVML_ERROR_GPU_IS_LOST", "NVML_ERROR_RESET_REQUIRED")


class NvmlDevice:
    """An NVIDIA GPU, accessed by NVML.

    Args:
        device: A CUDA device of torch.
        nvml: The module ``pynvml`` of the distribution nvidia-ml-py, or an object with its functions.

    Raises:
        BadValue: If ``device`` is not a CUDA device.
        NotMeasurable: If NVML cannot be loaded or does not find the device, or the device has no energy
            counter.

    Source: NVML API reference, NVIDIA.
    """

    def __init__(self, device: torch.device | str, nvml: Nvml = None) -> None:
        device = torch.device(device)
        if device.type != "cuda":
            raise BadValue(
                f"device = {str(device)!r}: expected a cuda device: NVML supports NVIDIA GPUs only"
            )
        self.nvml = _load() if nvml is None else nvml
        if missing := [name for name in NEEDED if not hasattr(self.nvml, name)]:
            where = getattr(self.nvml, "__file__", "it")
            raise NotMeasurable(
                f"the module pynvml ({where}) has no {missing[0]}: it is not that of nvidia-ml-py, or old; "
                "pip uninstall pynvml, then pip install --force-reinstall nvidia-ml-py"
            )
        self.errors = self.nvml.NVMLError
        try:
            self.nvml.nvmlInit()
        except self.errors as error:
            raise NotMeasurable(
                f"NVML cannot be used ({error}): install the NVIDIA driver, and in a container start it with "
                "the driver's libraries (--gpus all, NVIDIA_DRIVER_CAPABILITIES=compute,utility)"
            ) from None
        self.uuid, self.handle = self._find(device)
        self.instant = bool(self._try(self._instant_w))
        self.has_power = self._try(self.power_w) is not None
        try:
            self.energy_j()
        except self.errors as error:
            raise NotMeasurable(
                f"{self.name}: no counter of total energy ({error}); expected an entire GPU of the Volta "
                "generation or newer"
            ) from None

    def _find(self, device: torch.device) -> tuple[str, Any]:
        properties: Any = torch.cuda.get_device_properties(device)
        uuid = str(properties.uuid).lower().removeprefix("gpu-")
        handle = self._try(lambda: self.nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))
        if handle is None and hasattr(properties, "pci_bus_id"):
            parts = (properties.pci_domain_id, properties.pci_bus_id, properties.pci_device_id)
            bus = "{:08x}:{:02x}:{:02x}.0".format(*parts)
            handle = self._try(lambda: self.nvml.nvmlDeviceGetHandleByPciBusId(bus))
        if handle is None:
            raise NotMeasurable(
                f"NVML does not find {device} with the UUID GPU-{uuid}: a part of a GPU (MIG, vGPU) "
                "has no counter; use an entire GPU"
            )
        return f"GPU-{uuid}", handle

    @property
    def name(self) -> str:
        """Product name."""
        return _text(self.nvml.nvmlDeviceGetName(self.handle))

    def energy_j(self) -> float:
        """Return the joules used by the entire GPU since the driver was loaded (Volta and newer)."""
        return float(self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle)) * MILLI

    def power_w(self) -> float:
        """Return the power in watts: the instantaneous field, or ``nvmlDeviceGetPowerUsage``."""
        return self._instant_w() if self.instant else float(self._usage_mw()) * MILLI

    @property
    def power_scope(self) -> str:
        """Description of the value of `power_w`."""
        if not self.has_power:
            return "none: the device has no power sensor"
        if self.instant:
            return "gpu, instantaneous"
        return "device, nvmlDeviceGetPowerUsage (1 s average on Ampere other than GA100, and on newer)"

    def _usage_mw(self) -> int:
        return int(self.nvml.nvmlDeviceGetPowerUsage(self.handle))

    def _instant_w(self) -> float:
        field = (self.nvml.NVML_FI_DEV_POWER_INSTANT, self.nvml.NVML_POWER_SCOPE_GPU)
        value = self.nvml.nvmlDeviceGetFieldValues(self.handle, [field])[0]
        if value.nvmlReturn != self.nvml.NVML_SUCCESS:
            raise self.errors(value.nvmlReturn)
        return float(value.value.uiVal) * MILLI

    # ---- facts that are recorded with the energy; values that the driver does not provide are absent
    # --------

    def identity(self) -> Facts:
        """Return properties that are constant during a run."""
        h, n = self.handle, self.nvml
        limit = self._try(lambda: n.nvmlDeviceGetEnforcedPowerLimit(h))
        values = {
            "uuid": self.uuid,
            "name": self.name,
            "driver": self._try(lambda: _text(n.nvmlSystemGetDriverVersion())),
            "power_limit_w": None if limit is None else limit * MILLI,
            "persistence_mode": self._try(lambda: bool(n.nvmlDeviceGetPersistenceMode(h))),
            "power_scope": self.power_scope,
        }
        return {key: value for key, value in values.items() if value is not None}

    def state(self) -> GPUState:
        """Return temperature (Celsius), SM clock (MHz), utilization (0 to 1), throttling, other processes."""
        h, n = self.handle, self.nvml
        used = self._try(lambda: n.nvmlDeviceGetUtilizationRates(h).gpu)
        bits = self._try(lambda: n.nvmlDeviceGetCurrentClocksEventReasons(h))
        values = {
            "temperature": self._try(lambda: n.nvmlDeviceGetTemperature(h, n.NVML_TEMPERATURE_GPU)),
            "clock_mhz": self._try(lambda: n.nvmlDeviceGetClockInfo(h, n.NVML_CLOCK_SM)),
            "utilization": None if used is None else used / 100,
            "throttle": None if bits is None else [name for bit, name in THROTTLE.items() if bits & bit],
            "foreign_pids": self.foreign(),
        }
        return {key: value for key, value in values.items() if value is not None}

    def foreign(self) -> list[int] | None:
        """Return the ids of other processes on the GPU; None if the driver does not provide them.

        In a container, NVML returns process ids of the host, and a single unknown process is assumed to be
        this one.
        """
        running = self._try(lambda: self.nvml.nvmlDeviceGetComputeRunningProcesses(self.handle))
        if running is None:
            return None
        pids = sorted({int(process.pid) for process in running})
        if os.getpid() in pids:
            return [pid for pid in pids if pid != os.getpid()]
        is_this_process = torch.cuda.is_initialized()
        return pids[1:] if is_this_process else pids

    def shared(self) -> list[str]:
        """Return reasons why the counter includes the energy of others: MIG or a virtual GPU."""
        reasons = []
        mode = self._try(lambda: self.nvml.nvmlDeviceGetMigMode(self.handle))
        if mode is not None and mode[0] == getattr(self.nvml, "NVML_DEVICE_MIG_ENABLE", 1):
            reasons.append("the GPU is split (MIG); its counter is that of all parts")
        virtual = self._try(lambda: self.nvml.nvmlDeviceGetVirtualizationMode(self.handle))
        exclusive = (
            getattr(self.nvml, "NVML_GPU_VIRTUALIZATION_MODE_NONE", 0),
            getattr(self.nvml, "NVML_GPU_VIRTUALIZATION_MODE_PASSTHROUGH", 1),
        )
        if virtual is not None and virtual not in exclusive:
            reasons.append("the GPU is virtual (vGPU); its counter may be that of all guests")
        return reasons

    def _try(self, query: Callable[[], Any]) -> Any:
        """Return the result of ``query``, or None if the device does not support it.

        Raises:
            MeterError: If the GPU is lost or needs a reset.
        """
        mismatch = [kind for kind in [getattr(self.nvml, "NVMLLibraryMismatchError", None)] if kind]
        try:
            return query()
        except (AttributeError, *mismatch):
            return None  # the module or the driver is too old for the query
        except self.errors as error:
            lost = (getattr(self.nvml, name, None) for name in LOST)
            if error.value in lost:
                raise MeterError(f"the GPU is lost or needs a reset: {error}") from None
            return None


def _load() -> Nvml:
    try:
        import pynvml
    except ImportError as error:
        raise NotMeasurable(f"pynvml cannot be imported ({error}): pip install nvidia-ml-py") from None
    return pynvml


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
