"""Energy of a simulated GPU against the closed form of its power, and all reasons against a reading."""

from __future__ import annotations

import os

import pynvml
import pytest
import torch

from bpfree import BadValue, MeterError, NotMeasurable
from bpfree.meters import EnergyMeter, energy, energy_per_call
from bpfree.meters.sampling import PowerIntegral, measure_tick
from bpfree.meters.sources import GPU
from tests.meters.world import World

#: Idle power of the simulated GPU, and the time between two updates of its counter.
IDLE, TICK = 80.0, 0.1


def within_a_tick(value: float | None, expected: float, watts: float = 400.0) -> bool:
    """Return whether the error is at most the energy of one tick."""
    assert value is not None, "there is no figure"
    return abs(value - expected) <= watts * TICK


def test_joules_are_the_integral_of_the_power_over_the_window(world: World) -> None:
    world.launch(5, 300)  # before the window
    with world.energy(idle_s=30) as e:
        world.launch(10, 300)
        world.launch(10, 100, 300)  # a ramp
    world.launch(5, 300)  # after it
    reading = e.reading("gpu", "work")
    assert reading.scope == "measured:nvml_counter"
    assert reading.window_s == pytest.approx(20)
    expected = 20 * IDLE + 10 * 300 + 10 * 200
    assert within_a_tick(reading.gross_j, expected)
    assert reading.integral_j == pytest.approx(expected, rel=0.01)
    assert reading.ratio == pytest.approx(1, abs=0.01)
    assert reading.tainted == reading.warnings == []


def test_net_is_gross_less_the_idle_draw_before_and_after_by_the_same_counter(world: World) -> None:
    with world.energy(idle_s=30) as e:
        world.launch(20, 200)
        world.synchronize()
        world.gpu.loads.append(
            type(world.gpu.loads[0])(world.now, 1000, 10, 10)
        )  # the idle power increases to 90 W
    reading = e.reading("gpu", "work")
    assert reading.idle_before_w == pytest.approx(80, rel=0.01)
    assert reading.idle_after_w == pytest.approx(90, rel=0.01)
    assert reading.net_j == pytest.approx(reading.gross_j - 85 * 20, rel=0.01)
    assert reading.warnings == ["the idle power changed from 80.0 to 90.0 W"]


def test_without_idling_there_is_no_net_figure(world: World) -> None:
    with world.energy(idle_s=0) as e:
        world.launch(20, 200)
    row = e.reading("gpu", "work").row()
    assert "gross_j" in row
    assert not {"net_j", "idle_before_w", "idle_after_w"} & row.keys()


def test_the_device_is_synchronized_at_both_ends(world: World) -> None:
    with world.energy(idle_s=0) as e:
        world.launch(30, 300)  # returns at once
    assert within_a_tick(e.reading("gpu", "work").gross_j, 30 * (IDLE + 300))
    assert e.reading("gpu", "work").window_s == pytest.approx(30)


def test_the_device_is_found_by_its_identity_and_not_by_its_index(world: World) -> None:
    world.other.loads.extend(world.gpu.loads)
    with world.energy(idle_s=30) as e:
        world.launch(20, 300)
    assert e.facts()["gpu"]["uuid"] == world.gpu.uuid
    assert within_a_tick(e.reading("gpu", "work").gross_j, 20 * (IDLE + 300))


def test_a_device_unknown_to_nvml_is_absent_with_a_reason(world: World) -> None:
    world.gpu.uuid = "MIG-1"
    with world.energy(idle_s=0) as e:
        world.sleep(20)
    assert "NVML does not find" in e.absent["gpu"]
    with pytest.raises(NotMeasurable, match="entire"):
        e.reading("gpu", "work")
    assert e.readings("work") == {}


def test_inner_windows_are_not_counted_in_the_outer_one(world: World) -> None:
    with world.energy(idle_s=0) as e:
        world.launch(20, 300)
        with e("eval"):
            world.launch(15, 100)
        world.launch(20, 200)
    assert within_a_tick(e.reading("gpu", "work").gross_j, 20 * 380 + 20 * 280, 2 * 400)
    assert within_a_tick(e.reading("gpu", "eval").gross_j, 15 * 180)
    both = e.reading("gpu", "work", "eval")
    assert both.window_s == pytest.approx(55)
    assert both.pieces == 3


def test_a_short_window_has_a_reason_and_no_figure(world: World) -> None:
    with world.energy(idle_s=0) as e:
        world.launch(5, 300)
    row = e.reading("gpu", "work").row()
    assert not {"gross_j", "net_j", "ratio"} & row.keys()
    assert "too short" in row["absent"] and "10 s" in row["absent"]
    world.gpu.tick_s = 0.5
    with world.energy(idle_s=0) as e:
        world.launch(40, 300)
    assert "too short" in e.reading("gpu", "work").absent  # 80 of 100 ticks
    with world.energy(idle_s=0) as e:
        world.launch(51, 300)
    assert e.reading("gpu", "work").absent is None


def test_a_window_in_pieces_needs_more_ticks(world: World) -> None:
    with world.energy(idle_s=0) as e:
        for _ in range(16):
            with e("train"):
                world.launch(1, 300)
    assert "expected 40 s" in (e.reading("gpu", "train").absent or "")  # sqrt(16) times 100 ticks of 0.1 s


@pytest.mark.parametrize("tick", [0.01, 0.02, 0.1])
def test_the_tick_is_measured(world: World, tick: float) -> None:
    world.gpu.tick_s = tick
    with world.energy(idle_s=0) as e:
        world.launch(20, 300)
    reading = e.reading("gpu", "work")
    assert reading.tick_s == pytest.approx(tick, rel=0.03)
    assert reading.ticks == pytest.approx(20 / tick, rel=0.03)


def test_a_counter_that_does_not_change_raises(world: World) -> None:
    world.gpu.stops_at = 0.0
    with pytest.raises(MeterError, match="does not work"), world.energy(idle_s=0):
        pass


def test_a_counter_that_stops_gives_no_figure_or_a_tainted_one(world: World) -> None:
    with world.energy(idle_s=0) as e:
        world.gpu.stops_at = world.now
        world.launch(20, 300)
    reading = e.reading("gpu", "work")
    assert reading.gross_j is None and "did not change" in (reading.absent or "")
    world.gpu.stops_at = world.now + 15
    with world.energy(idle_s=0) as e:
        world.launch(20, 300)
    assert any("apart" in reason for reason in e.reading("gpu", "work").tainted)


def test_without_a_counter_the_figure_is_absent(world: World) -> None:
    world.gpu.counter = False
    with world.energy(idle_s=0) as e:
        world.launch(20, 300)
    assert "Volta" in e.absent["gpu"]
    assert e.sources == []


def test_without_a_driver_the_figure_is_absent(world: World) -> None:
    world.nvml.gpus.clear()
    with world.energy(idle_s=0) as e:
        world.launch(20, 300)
    assert "install the NVIDIA driver" in e.absent["gpu"]


def test_a_decreasing_counter_raises_after_the_block(world: World) -> None:
    done = []
    with pytest.raises(MeterError, match="decreased"), world.energy(idle_s=0) as e:
        world.launch(10, 300)
        world.synchronize()
        world.gpu.counter_offset_mj = -1_000_000_000  # the driver was reloaded
        done.append(1)
    assert done == [1]
    with pytest.raises(MeterError, match="decreased"):
        e.reading("gpu", "work")


def test_a_lost_gpu_raises(world: World) -> None:
    with pytest.raises(MeterError, match="GPU is lost"), world.energy(idle_s=0):
        world.launch(10, 300)
        world.synchronize()
        world.gpu.lost = True


@pytest.mark.parametrize(
    ("factor", "tainted", "warned"), [(1.02, 0, 0), (1.04, 0, 1), (1.06, 1, 0), (0.94, 1, 0)]
)
def test_a_difference_of_counter_and_integral_warns_and_taints(
    world: World, factor: float, tainted: int, warned: int
) -> None:
    world.gpu.counter_factor = factor
    with world.energy(idle_s=0) as e:
        world.launch(60, 300)
    reading = e.reading("gpu", "work")
    assert reading.ratio == pytest.approx(1 / factor, rel=0.003)
    assert (len(reading.tainted), len(reading.warnings)) == (tainted, warned)


def test_power_is_sampled_while_it_changes(world: World) -> None:
    with world.energy(idle_s=0) as e:
        for _ in range(20):
            world.launch(1, 500)
            world.launch(1, 20)
    reading = e.reading("gpu", "work")
    assert reading.integral_j == pytest.approx(20 * (580 + 100), rel=0.03)
    assert reading.samples_hz >= 10
    assert reading.tainted == []


def test_a_ramp_is_integrated_by_trapezoids() -> None:
    class Ramp:
        now = 0.0

    ramp = Ramp()
    patch = pytest.MonkeyPatch()
    patch.setattr("bpfree.meters.sampling.perf_counter", lambda: ramp.now)
    integral = PowerIntegral(lambda: 50 * ramp.now)
    for ramp.now in (0.0, 1.0, 1.5, 4.0):
        joules, samples = integral.sample()
    patch.undo()
    assert joules == pytest.approx(50 * 4**2 / 2)
    assert samples == 4


def test_a_sensor_that_does_not_change_taints(world: World) -> None:
    world.gpu.held_power_mw = 380_000  # the correct average
    with world.energy(idle_s=0) as e:
        world.launch(20, 300)
    assert any("always showed 380.0 W" in reason for reason in e.reading("gpu", "work").tainted)


def test_too_few_samples_taint(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GPU, "period_s", 0.2)
    with world.energy(idle_s=0) as e:
        world.launch(20, 300)
    assert any("sampled at 5" in reason for reason in e.reading("gpu", "work").tainted)


def test_without_the_instantaneous_field_the_average_power_is_used(world: World) -> None:
    world.gpu.instant = False
    with world.energy(idle_s=0) as e:
        world.launch(20, 300)
    assert "nvmlDeviceGetPowerUsage" in e.facts()["gpu"]["power_scope"]
    assert e.reading("gpu", "work").ratio == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pids": [os.getpid(), 99999999]}, "other processes"),
        ({"pids": [11111111, 99999999]}, "other processes"),  # in a container, one of them is this process
        ({"mig": pynvml.NVML_DEVICE_MIG_ENABLE}, "MIG"),
        ({"virtual": pynvml.NVML_GPU_VIRTUALIZATION_MODE_VGPU}, "vGPU"),
    ],
)
def test_a_shared_device_taints(world: World, change: dict[str, object], reason: str) -> None:
    with world.energy(idle_s=0) as e:
        world.launch(10, 300)
        world.synchronize()
        for name, value in change.items():  # changes during the window count as well
            setattr(world.gpu, name, value)
        world.launch(10, 300)
    assert [r for r in e.reading("gpu", "work").tainted if reason in r]


@pytest.mark.parametrize("pids", [[os.getpid()], [11111111], []])
def test_this_process_alone_taints_nothing(world: World, pids: list[int]) -> None:
    world.gpu.pids = pids
    with world.energy(idle_s=0) as e:
        world.launch(20, 300)
    assert e.reading("gpu", "work").tainted == []


def test_the_state_of_the_device_is_recorded(world: World) -> None:
    world.gpu.throttle = 0x4 | 0x40
    with world.energy(idle_s=10) as e:
        world.launch(30, 300)
    facts = e.facts()["gpu"]
    assert facts["throttle"] == ["hw_thermal_slowdown", "sw_power_cap"]
    assert facts["driver"] == "999.1" and facts["power_limit_w"] == 700
    assert (facts["temp_before"], facts["util_max"], facts["clock_mean_mhz"]) == (40, 1.0, 1980)
    assert 0.4 < facts["util_mean"] < 0.8  # 30 of 50 seconds
    assert "persistence_mode" not in facts  # not provided by the driver
    assert any("hw_thermal_slowdown" in w for w in e.reading("gpu", "work").warnings)


def test_a_negative_net_is_returned_with_a_warning(world: World) -> None:
    """Omitting negative values would bias the mean of the others."""
    world.gpu.loads.append(type("", (), {"watts": lambda s, t: 0.0, "joules": lambda s, t: 0.0})())
    with world.energy(idle_s=30) as e:
        world.launch(20, -30)
    reading = e.reading("gpu", "work")
    assert reading.tainted == [] and reading.gross_j is not None and reading.net_j is not None
    assert within_a_tick(reading.gross_j, 20 * (IDLE - 30))
    assert reading.net_j == pytest.approx(-20 * 30, rel=0.02)
    assert any("the net energy is negative" in reason for reason in reading.warnings)


def test_a_counter_works_without_a_power_sensor(world: World) -> None:
    world.gpu.sensor = False
    with world.energy(idle_s=30) as e:
        world.launch(20, 300)
    reading = e.reading("gpu", "work")
    assert within_a_tick(reading.gross_j, 20 * (IDLE + 300)) and reading.net_j == pytest.approx(
        6000, rel=0.01
    )
    assert reading.integral_j is reading.ratio is None and reading.tainted == []
    assert any("no power sensor" in reason for reason in reading.warnings)
    assert "no power sensor" in e.facts()["gpu"]["power_scope"]


class Old:
    """A module of the same name without some members."""

    __file__ = "/somewhere/pynvml.py"

    def __init__(self, nvml: object, *missing: str) -> None:
        self._nvml, self._missing = nvml, missing

    def __getattr__(self, name: str) -> object:
        if name in self._missing:
            raise AttributeError(f"module 'pynvml' has no attribute {name!r}")
        return getattr(self._nvml, name)


def test_an_old_pynvml_measures_what_it_can(world: World) -> None:
    later = (
        "NVMLLibraryMismatchError", "NVML_FI_DEV_POWER_INSTANT", "NVML_POWER_SCOPE_GPU",
        "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetFieldValues", "NVML_DEVICE_MIG_ENABLE",
        "nvmlDeviceGetVirtualizationMode", "NVML_GPU_VIRTUALIZATION_MODE_NONE", "NVML_ERROR_RESET_REQUIRED",
    )  # fmt: skip
    with world.energy(idle_s=30, nvml=Old(world.nvml, *later)) as e:
        world.launch(20, 300)
    assert within_a_tick(e.reading("gpu", "work").gross_j, 20 * (IDLE + 300))
    assert e.reading("gpu", "work").tainted == []


@pytest.mark.parametrize("missing", ["nvmlDeviceGetTotalEnergyConsumption", "NVMLError", "nvmlInit"])
def test_an_unsuitable_pynvml_is_reported_and_the_block_runs(world: World, missing: str) -> None:
    before = world.now
    with world.energy(nvml=Old(world.nvml, missing)) as e:
        world.sleep(3)
    assert e.sources == [] and world.now - before == pytest.approx(3)  # no idle periods
    assert f"/somewhere/pynvml.py) has no {missing}" in e.absent["gpu"] and "nvidia-ml-py" in e.absent["gpu"]


def test_an_exception_in_a_meter_does_not_end_the_block(world: World) -> None:
    class Broken(Old):
        def nvmlDeviceGetTotalEnergyConsumption(self, gpu: object) -> int:
            if world.now > 1010:
                raise OSError("the driver went away")
            return int(world.nvml.nvmlDeviceGetTotalEnergyConsumption(gpu))  # type: ignore[arg-type]

    with world.meter(nvml=Broken(world.nvml)) as e:
        with e("work"):
            world.sleep(20)
        assert e.failed == {"gpu"} and "the driver went away" in e.absent["gpu"]
        assert e.readings("work") == {}
    with world.meter(nvml=Old(world.nvml, "nvmlDeviceGetHandleByPciBusId"), rapl_root=object()) as e:
        assert "cpu" in e.absent


def test_short_work_is_repeated_in_one_window_and_divided(world: World) -> None:
    calls = []

    def work() -> None:
        calls.append(world.now)
        world.launch(0.25, 300)

    reading = energy_per_call(work, "cuda:0", idle_s=30, nvml=world.nvml, rapl_root=world.no_rapl)["gpu"]
    assert reading.window_s >= 10
    assert len(calls) == reading.repeats + 1  # one before the window
    assert reading.gross_j == pytest.approx(0.25 * 380, rel=0.01)
    assert reading.net_j == pytest.approx(0.25 * 300, rel=0.01)
    assert reading.integral_j == pytest.approx(0.25 * 380, rel=0.01)


def test_a_device_is_locked_by_one_meter_at_a_time(world: World) -> None:
    with world.energy(idle_s=0):
        with world.energy(idle_s=0) as inner:
            world.launch(20, 300)
        assert "another run measures" in inner.absent["gpu"]
    with world.energy(idle_s=0) as after:
        world.launch(20, 300)
    assert after.reading("gpu", "work").gross_j is not None


def test_a_resumed_run_continues_its_joules(world: World) -> None:
    with world.meter() as first, first("train"):
        world.launch(20, 300)
    world.sleep(1000)  # the gap between the two runs
    with world.meter() as second:
        second.load(first.state())
        with second("train"):
            world.launch(10, 100)
    reading = second.reading("gpu", "train")
    assert within_a_tick(reading.gross_j, 20 * 380 + 10 * 180, 2 * 400)
    assert (reading.window_s, reading.pieces) == (pytest.approx(30), 2)


def test_partly_metered_windows_have_no_figure(world: World) -> None:
    without_source = EnergyMeter("cpu", [], {})
    with without_source("train"):
        world.sleep(20)
    with world.meter() as with_source:
        with_source.load(without_source.state())
        with with_source("train"):
            world.launch(20, 300)
    assert "interrupted" in with_source.reading("gpu", "train").absent


def test_the_thread_samples_at_least_at_ten_hertz(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    from bpfree.meters.sampling import Repeating

    integral = PowerIntegral(lambda: 100.0)
    begin = time.perf_counter()
    thread = Repeating(integral.sample, GPU.period_s)
    time.sleep(0.8)
    thread.stop()
    joules, samples = integral.sample()
    assert samples / 0.8 >= 10
    assert joules == pytest.approx(100 * (time.perf_counter() - begin), rel=0.05)


def test_exceptions_in_the_thread_are_raised_by_check() -> None:
    import time

    from bpfree.meters.sampling import Repeating

    def fail() -> None:
        raise OSError("the sensor is gone")

    thread = Repeating(fail, 0.01)
    time.sleep(0.1)
    with pytest.raises(MeterError, match="the sensor is gone"):
        thread.check()
    thread.stop()


def test_the_tick_of_a_real_clock_is_measured() -> None:
    import time

    tick = measure_tick(lambda: float(int(time.perf_counter() / 0.02)), changes=8)
    assert tick == pytest.approx(0.02, rel=0.2)


def test_reasons_are_given_if_nothing_can_be_measured(tmp_path: object) -> None:
    with energy("cpu", idle_s=0, rapl_root=tmp_path / "none") as e:
        torch.ones(3).sum()
    assert "does not exist" in e.absent["cpu"]
    assert e.readings("work") == {}
    with pytest.raises(NotMeasurable, match="does not exist"):
        e.reading("cpu", "work")


def test_a_device_without_a_meter_is_refused() -> None:
    with pytest.raises(BadValue, match="meta"), energy("meta"):
        pass
