"""Which GPU of NVML is torch's, and what is reported where a driver or a module lacks something."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch

from bpfree import BadValue, NotMeasurable
from bpfree.meters.nvml import NvmlDevice
from tests.meters.world import FakeGPU, World


def properties(**values: Any) -> Any:
    return lambda device: SimpleNamespace(uuid="00000000-0000-0000-0000-0000000000ff", **values)


def test_a_gpu_whose_identity_is_unknown_is_found_by_its_place_on_the_bus(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[str] = []

    def by_bus(bus: str) -> FakeGPU:
        requests.append(bus)
        if bus != "00000001:3f:00.0":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return world.gpu

    world.nvml.nvmlDeviceGetHandleByPciBusId = by_bus  # type: ignore[attr-defined]
    place = {"pci_domain_id": 1, "pci_bus_id": 63, "pci_device_id": 0}
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties(**place))
    assert NvmlDevice("cuda:0", world.nvml).handle is world.gpu
    for other in ({**place, "pci_bus_id": 64}, {}):
        monkeypatch.setattr(torch.cuda, "get_device_properties", properties(**other))
        with pytest.raises(NotMeasurable, match="GPU-00000000-0000-0000-0000-0000000000ff"):
            NvmlDevice("cuda:0", world.nvml)
    assert requests == ["00000001:3f:00.0", "00000001:40:00.0"], "hexadecimal, and only where torch has it"


def test_without_a_list_of_processes_it_is_said_that_others_are_not_known(world: World) -> None:
    def unsupported(gpu: FakeGPU) -> list[Any]:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    world.nvml.nvmlDeviceGetComputeRunningProcesses = unsupported  # type: ignore[method-assign]
    assert NvmlDevice("cuda:0", world.nvml).foreign() is None
    with world.energy(idle_s=0) as e:
        world.launch(30, 100)
    reading = e.reading("gpu", "work")
    assert reading.tainted == [] and any(
        "does not provide the processes" in warning for warning in reading.warnings
    )


def test_what_is_no_gpu_and_modules_that_are_no_nvml(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadValue, match="expected a cuda device"):
        NvmlDevice("cpu", world.nvml)
    with pytest.raises(NotMeasurable, match="pip install --force-reinstall nvidia-ml-py"):
        NvmlDevice("cuda:0", SimpleNamespace(__file__="old/pynvml.py"))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NotMeasurable, match="pip install nvidia-ml-py"):
        NvmlDevice("cuda:0")


def test_the_library_is_loaded_where_none_is_given(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", world.nvml)
    assert NvmlDevice("cuda:0").handle is world.gpu
