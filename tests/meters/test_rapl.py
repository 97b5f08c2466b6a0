"""Energy of CPU packages from a folder like ``/sys/class/powercap``."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpfree import MeterError, NotMeasurable
from bpfree.meters import energy
from bpfree.meters.rapl import domains
from tests.meters.world import FakeRAPL, World

WATTS = {"package-0": 60.0, "dram": 5.0}


def test_packages_and_memory_are_counted_but_not_overlapping_domains(world: World, tmp_path: Path) -> None:
    FakeRAPL(world, tmp_path / "powercap", WATTS)
    with energy("cpu", idle_s=0, rapl_root=tmp_path / "powercap") as e:
        world.sleep(30)
    reading = e.reading("cpu", "work")
    assert reading.scope == "measured:rapl"
    assert reading.gross_j == pytest.approx(30 * 65, rel=1e-3)
    assert reading.parts == {
        "package-0": pytest.approx(30 * 60, rel=1e-3),
        "dram-0": pytest.approx(30 * 5, rel=1e-3),
    }
    assert reading.ratio is None and reading.tainted == []


def test_a_counter_may_wrap_around_in_a_window(world: World, tmp_path: Path) -> None:
    FakeRAPL(world, tmp_path / "powercap", WATTS, offset_uj=900_000_000, range_uj=1_000_000_000)
    with energy("cpu", idle_s=0, rapl_root=tmp_path / "powercap") as e:
        world.sleep(60)  # 3600 J: the counter wraps around three times
    assert e.reading("cpu", "work").gross_j == pytest.approx(60 * 65, rel=1e-3)


def test_a_counter_without_a_known_range_raises_when_it_wraps_around(world: World, tmp_path: Path) -> None:
    tree = FakeRAPL(world, tmp_path / "powercap", WATTS, range_uj=10_000_000_000)
    for file in (tmp_path / "powercap").glob("*/max_energy_range_uj"):
        file.unlink()
    with energy("cpu", idle_s=0, rapl_root=tmp_path / "powercap") as e:
        world.sleep(30)
    assert e.reading("cpu", "work").gross_j == pytest.approx(30 * 65, rel=1e-3)
    with (
        pytest.raises(MeterError, match="wrapped around"),
        energy("cpu", idle_s=0, rapl_root=tmp_path / "powercap"),
    ):
        world.sleep(30)
        tree.offset_uj = -int((world.now - tree.begin) * 60e6)
        world.sleep(30)


def test_net_subtracts_the_idle_energy(world: World, tmp_path: Path) -> None:
    tree = FakeRAPL(world, tmp_path / "powercap", {"package-0": 20.0, "dram": 2.0})
    tree.add(30.0, 20.0, 40.0)  # 40 W more for 20 s, after 30 s
    with energy("cpu", idle_s=30 - 0.1, rapl_root=tmp_path / "powercap") as e:
        world.sleep(tree.begin + 50 - world.now)
    reading = e.reading("cpu", "work")
    assert reading.idle_before_w == pytest.approx(22, rel=0.01)
    assert reading.gross_j == pytest.approx(reading.window_s * 22 + 800, rel=0.01)
    assert reading.net_j == pytest.approx(800, rel=0.01)


def test_a_counter_that_was_reset_raises(world: World, tmp_path: Path) -> None:
    tree = FakeRAPL(world, tmp_path / "powercap", WATTS, offset_uj=500_000_000)
    with (
        pytest.raises(MeterError, match="was reset"),
        energy("cpu", idle_s=0, rapl_root=tmp_path / "powercap"),
    ):
        world.sleep(20)
        tree.offset_uj = -2_000_000_000
        world.sleep(20)


def test_a_counter_that_does_not_change_raises(world: World, tmp_path: Path) -> None:
    FakeRAPL(world, tmp_path / "powercap", {"package-0": 0.0, "dram": 0.0})
    with (
        pytest.raises(MeterError, match="does not work"),
        energy("cpu", idle_s=0, rapl_root=tmp_path / "powercap"),
    ):
        pass


def test_a_counter_that_disappears_raises(world: World, tmp_path: Path) -> None:
    tree = FakeRAPL(world, tmp_path / "powercap", WATTS)
    with (
        pytest.raises(MeterError, match="cannot be read"),
        energy("cpu", idle_s=0, rapl_root=tmp_path / "powercap"),
    ):
        world.sleep(20)
        world.rapl.clear()
        (tree.root / "intel-rapl:0" / "energy_uj").write_text("")


def test_counters_readable_by_root_only_are_reported_with_the_fix(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeRAPL(world, tmp_path / "powercap", WATTS)
    plain = Path.read_text

    def refuse(path: Path, *args: object, **options: object) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return plain(path, *args, **options)

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(NotMeasurable, match=r"sudo chmod a\+r .*/intel-rapl:\*/energy_uj"):
        domains(tmp_path / "powercap")
    with energy("cpu", idle_s=0, rapl_root=tmp_path / "powercap") as e:
        world.sleep(20)
    assert "chmod" in e.absent["cpu"]


def test_a_folder_without_packages_is_reported(tmp_path: Path) -> None:
    with pytest.raises(NotMeasurable, match="no RAPL package"):
        domains(tmp_path)


def test_gpu_and_cpu_readings_are_separate(world: World, tmp_path: Path) -> None:
    FakeRAPL(world, tmp_path / "powercap", WATTS)
    with world.energy(idle_s=0, rapl_root=tmp_path / "powercap") as e:
        world.launch(20, 300)
    readings = e.readings("work")
    assert {name: reading.scope for name, reading in readings.items()} == {
        "gpu": "measured:nvml_counter",
        "cpu": "measured:rapl",
    }
    assert readings["cpu"].gross_j == pytest.approx(20 * 65, rel=1e-3)
    assert readings["gpu"].gross_j == pytest.approx(20 * 380, rel=0.01)


def test_a_counter_that_is_not_there_is_not_measurable_and_a_nameless_domain_is_left_out(
    world: World, tmp_path: Path
) -> None:
    root = tmp_path / "powercap"
    FakeRAPL(world, root, WATTS)
    (root / "intel-rapl:0:1" / "name").unlink()
    assert [domain.name for domain in domains(root)] == ["package-0"]
    (root / "intel-rapl:0" / "energy_uj").unlink()
    with pytest.raises(NotMeasurable, match="energy_uj cannot be read"):
        domains(root)
