"""The doctor reports what a machine can measure, how precisely, and how to measure the rest."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from bpfree import BadValue
from bpfree.bench import doctor
from bpfree.bench.__main__ import main
from bpfree.meters import rapl
from tests.meters.world import FakeRAPL, World


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    """A world in which matrix products are queued on the GPU."""
    world = World(monkeypatch, tmp_path)
    monkeypatch.setattr(doctor, "_products", lambda device: lambda: world.launch(0.01, 420))
    monkeypatch.setattr(doctor.time, "perf_counter", lambda: world.now)
    monkeypatch.setattr(doctor, "environment", lambda device, threads: {})
    monkeypatch.setattr(doctor, "device_peak", lambda device: {"peak_alloc": 2**28})
    return world


PARTS = ("measured:nvml_counter", "measured:rapl", "tick 100", "idle 80.0 W", "they agree", "256 MiB")


def printed(found: doctor.Found) -> str:
    text = io.StringIO()
    doctor.show(found, Console(width=200, file=text))
    return text.getvalue()


def test_a_gpu_is_examined(world: World, tmp_path: Path) -> None:
    FakeRAPL(world, tmp_path / "powercap", {"package-0": 60.0, "dram": 5.0})
    found = doctor.examine("cuda:0", nvml=world.nvml, rapl_root=tmp_path / "powercap")
    gpu = found["energy"]["gpu"]
    assert gpu["tick_s"] == pytest.approx(0.1, rel=0.03)
    assert gpu["idle_before_w"] == pytest.approx(80, rel=0.02)
    assert gpu["load_w"] == pytest.approx(500, rel=0.02)
    assert gpu["load"]["ratio"] == pytest.approx(1, abs=0.02)
    assert found["energy"]["cpu"]["load_w"] == pytest.approx(65, rel=0.02)
    assert found["absent"] == {}
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    text = printed(found)
    for part in PARTS:
        assert part in text


def test_readings_that_disagree_are_reported(world: World) -> None:
    world.gpu.counter_factor = 1.7
    found = doctor.examine("cuda:0", nvml=world.nvml, rapl_root=world.no_rapl)
    assert "they DISAGREE" in printed(found)
    assert "does not exist" in found["absent"]["cpu"]


def test_a_machine_without_meters_gets_instructions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rapl, "ROOT", tmp_path / "none")
    assert main(["doctor", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "cpu energy is not measured: " in text and "intel_rapl_common" in text
    assert "gpu energy is not measured: " in text
    assert "bytes saved for backward" in text
    assert "0.0 W" not in text
    assert main(["doctor", "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["energy"] == {}


@pytest.mark.parametrize("device", ["nonsense", "meta", "cuda"])
def test_a_missing_device_is_a_plain_error(
    device: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["doctor", "--device", device]) == 2
    assert "error: device" in capsys.readouterr().err
    with pytest.raises(BadValue):
        doctor.examine(device)
