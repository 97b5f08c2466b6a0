"""The section ``energy`` of a config, and the rows that it makes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo

from bpfree import BadValue, MeterError
from bpfree.bench import __main__ as bench_main
from bpfree.bench import cell as cell_module
from bpfree.bench import energy as energy_module
from bpfree.bench import measures
from bpfree.bench.conditions import scope
from bpfree.bench.config import Cell, cells
from bpfree.bench.energy import CellEnergy, EnergyConfig, energy_config, of_all, summary
from bpfree.bench.results import Results
from bpfree.bench.runner import run
from bpfree.meters import EnergyMeter, ModeledEnergy, rapl
from tests.meters.world import World

CONFIG: dict[str, Any] = {
    "name": "small",
    "dataset": {"name": "digits"},
    "net": {"name": "mlp", "hidden": [32]},
    "fit": {"epochs": 3, "batch_size": 64},
    "trainer": {"id": "mono_forward"},
    "seeds": [0],
}
QUICK = {"idle_s": 0.3, "min_s": 0.3, "warmup_s": 0.05, "repeat_s": 20.0}

#: What the machine of `packages` draws when idle, and more for each second of this process's CPU time.
IDLE_W, WORK_W = 20.0, 100.0


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RAPL of a machine whose power rises with the CPU time of this process."""
    folder = tmp_path / "powercap" / "intel-rapl:0"
    folder.mkdir(parents=True)
    (folder / "name").write_text("package-0\n")
    (folder / "max_energy_range_uj").write_text("262143328850\n")
    read_text = Path.read_text

    def read(path: Path, *args: Any, **options: Any) -> str:
        if path.name != "energy_uj":
            return read_text(path, *args, **options)
        tick = 0.001
        joules = IDLE_W * (time.perf_counter() // tick * tick) + WORK_W * time.process_time()
        return f"{int(joules * 1e6)}\n"

    (folder / "energy_uj").write_text("0\n")
    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr(rapl, "ROOT", tmp_path / "powercap")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def only_cell(**energy: Any) -> Cell:
    return cells({**CONFIG, "energy": QUICK | energy})[0]


def row_of(cell: Cell, folder: Path) -> dict[str, Any]:
    threads = torch.get_num_threads()
    try:
        return cell_module.run(cell, folder, 1000.0, lambda done, of: None)
    finally:
        torch.set_num_threads(threads)


def test_a_cell_measures_its_training_with_scope_idle_and_carbon(packages: None, tmp_path: Path) -> None:
    row = row_of(only_cell(country="POL", pue=1.5), tmp_path)
    energy = row["energy"]
    assert energy["scope"] == "measured:rapl"
    assert energy["window_s"] >= 0.3
    assert energy["idle_before_w"] == pytest.approx(IDLE_W, rel=0.5)
    a_run_s = energy["window_s"] / energy["repeats"]
    assert IDLE_W * a_run_s < energy["cpu_gross_j"] < 1.05 * (IDLE_W + WORK_W) * a_run_s
    assert 0 < energy["cpu_net_j"] < energy["cpu_gross_j"]
    assert energy["parts"] == {"package-0": pytest.approx(energy["cpu_gross_j"])}
    assert row["carbon"]["kg"] == {
        "measured:rapl": pytest.approx(
            energy["cpu_gross_j"] / 3.6e6 * row["carbon"]["g_per_kwh"] / 1000 * 1.5
        )
    }
    assert row["device"]["cpu"]["domains"] == ["package-0"]
    assert measures.energy(row) == energy["cpu_gross_j"]
    assert scope(row) == "measured:rapl"
    # One thread computed, and did nothing else than train in that window.
    assert 0 < row["time"]["train_cpu_s"] <= 1.05 * row["time"]["train_s"]
    assert {"train_s", "warmup_s", "idle_before_s", "idle_after_s", "eval_s"} <= row["time"].keys()
    assert "modelled" not in energy


def test_training_that_is_too_short_is_repeated_and_its_own_time_is_kept(
    packages: None, tmp_path: Path
) -> None:
    row = row_of(only_cell(min_s=0.6), tmp_path)
    energy = row["energy"]
    assert energy["repeats"] > 1
    assert energy["window_s"] == pytest.approx(row["time"]["train_s"] + row["time"]["train_again_s"])
    assert all(len(point) == 3 for point in row["curve"])  # no joules on the way: each was below the tick
    plain = row_of(replace(only_cell(), energy=None), tmp_path / "plain")
    assert row["weights_sha256"] == plain["weights_sha256"]


def test_the_curve_has_joules_where_one_run_is_long_enough(packages: None, tmp_path: Path) -> None:
    cell = only_cell(min_s=0.1)
    row = row_of(replace(cell, fit=replace(cell.fit, epochs=160)), tmp_path)
    assert row["energy"]["repeats"] == 1
    joules = [point[3] for point in row["curve"]]
    assert joules == sorted(joules) and joules[0] > 0
    assert joules[-1] == pytest.approx(row["energy"]["cpu_gross_j"], rel=0.01)


def test_training_that_stays_too_short_gives_the_reason(packages: None, tmp_path: Path) -> None:
    row = row_of(only_cell(min_s=30.0, repeat_s=0.0), tmp_path)
    assert "too short" in row["energy"]["absent"]["cpu"]
    assert not {"scope", "cpu_gross_j"} & row["energy"].keys()
    assert "carbon" not in row


def test_without_a_meter_the_row_has_the_reason_and_the_model_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rapl, "ROOT", tmp_path / "none")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    row = row_of(only_cell(idle_s=100.0), tmp_path)  # and does not wait for nothing
    assert row["energy"].keys() == {"absent"}
    assert "does not exist" in row["energy"]["absent"]["cpu"]
    row = row_of(only_cell(modeled=True, country="FRA"), tmp_path)
    assert row["energy"]["modelled"]["joules"].keys() == {"modelled:tdp", "modelled:ram_dimm"}
    assert row["carbon"]["kg"].keys() == {"modelled:tdp", "modelled:ram_dimm"}
    lines = summary([row])
    assert any("modelled:tdp, not measured" in line for line in lines)
    assert any("does not exist" in line for line in lines)


def test_compilation_counts_as_warm_up(tmp_path: Path) -> None:
    def slow(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
        time.sleep(1.0)
        return graph.forward

    torch._dynamo.reset()
    torch._dynamo.register_backend(slow, name="slow")
    cell = cells({**CONFIG, "trainer": {"id": "mono_forward", "compile": "slow"}})[0]
    row = row_of(replace(cell, fit=replace(cell.fit, epochs=1)), tmp_path)
    # Two blocks; the second shape, that of the last batch, is compiled beforehand as well.
    assert row["time"]["warmup_s"] > 2.0
    assert row["time"]["train_s"] < 1.0
    assert row["budget"]["passes"] == 1


def test_a_cell_without_the_section_has_no_energy_and_keeps_its_id(tmp_path: Path) -> None:
    plain = cells(CONFIG)[0]
    row = row_of(plain, tmp_path)
    assert not {"energy", "carbon", "device"} & row.keys()
    assert plain.id != only_cell().id
    assert "energy" not in row["config"]
    assert measures.energy(row) is None
    assert summary([row]) == []


def test_cells_at_once_cannot_be_metered(tmp_path: Path) -> None:
    with pytest.raises(BadValue, match="--jobs 1"):
        run([only_cell()], Results(tmp_path), jobs=2)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"idle": 3}, "energy.idle: unknown key; did you mean 'idle_s'"),
        ({"idle_s": -1.0}, r"energy\.idle_s = -1\.0"),
        ({"pue": 0.5}, r"energy\.pue = 0\.5"),
        ({"country": "PLO"}, "did you mean 'POL'"),
        ({"country": "POL", "factor": {}}, "both set the carbon factor"),
        ({"factor": {"g_per_kwh": 1.0, "region": "x", "year": 2024}}, "energy.factor.source: missing"),
        ({"factor": {"g_per_kwh": -1.0, "region": "x", "year": 2024, "source": "y"}}, "g_per_kwh"),
    ],
)
def test_mistakes_in_the_section_are_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(BadValue, match=message):
        cells({**CONFIG, "energy": section})


def test_a_given_factor_is_used(packages: None, tmp_path: Path) -> None:
    own = {"g_per_kwh": 36.0, "region": "roof", "year": 2026, "source": "the inverter"}
    row = row_of(only_cell(factor=own), tmp_path)
    assert row["carbon"]["source"] == "the inverter"
    assert row["carbon"]["kg"]["measured:rapl"] == pytest.approx(row["energy"]["cpu_gross_j"] * 1e-8)


@pytest.fixture
def gpus(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world whose clock is the bench's as well."""
    monkeypatch.setattr(energy_module, "perf_counter", lambda: world.now)
    return world


def gpu_row(world: World, settings: EnergyConfig, resumed: bool = False) -> dict[str, Any]:
    """A row of a training of 20 s at 380 W."""

    def warm_up() -> None:
        world.launch(5, 300)
        world.synchronize()

    with world.meter(min_s=settings.min_s) as found:
        energy = CellEnergy(found, settings, torch.device("cuda"))
        with energy.measured(warm_up, lambda window: None):
            with found("train"):
                world.launch(20, 300)
            with found("eval"):
                world.launch(2, 300)
        return energy.row(resumed) | {"status": "ok", "arm": "a", "time": energy.seconds()}


def test_a_gpu_is_metered_by_the_schema(gpus: World) -> None:
    row = gpu_row(gpus, energy_config({"country": "POL", "warmup_s": 12.0}))
    energy = row["energy"]
    assert energy["scope"] == "measured:nvml_counter"
    assert energy["gpu_gross_j"] == pytest.approx(20 * 380, rel=0.01)
    assert energy["gpu_net_j"] == pytest.approx(20 * 300, rel=0.01)
    assert energy["ratio"] == pytest.approx(1, abs=0.01)
    assert "eval_j" not in energy  # 2 s are too short
    assert energy["warmup_j"] == pytest.approx(15 * 380, rel=0.01)  # three times 5 s
    assert row["device"]["gpu"]["uuid"] == gpus.gpu.uuid
    assert "absent" in energy and "cpu" in energy["absent"]
    assert list(row["carbon"]["kg"]) == ["measured:nvml_counter"]
    assert measures.energy(row) == energy["gpu_gross_j"]
    assert summary([row])[0].startswith("energy of a: 7")


@pytest.mark.parametrize("resumed", [False, True])
def test_a_tainted_reading_is_separate_and_has_a_reason(gpus: World, resumed: bool) -> None:
    if not resumed:
        gpus.gpu.pids.append(99999999)
    row = gpu_row(gpus, energy_config({"country": "POL"}), resumed)
    assert not {"scope", "gpu_gross_j", "gpu_net_j"} & row["energy"].keys()
    assert row["energy"]["tainted"]["gpu"]["gross_j"] > 0
    reason = "resumed" if resumed else "other processes"
    assert reason in row["energy"]["tainted"]["gpu"]["tainted"][0]
    assert "carbon" not in row
    assert measures.energy(row) is None
    assert any(reason in line for line in summary([row]))


@pytest.mark.parametrize("when", ["start", "stop"])
def test_a_model_that_fails_costs_no_row(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def failing() -> Iterator[Any]:
        if when == "start":
            raise MeterError("CodeCarbon failed: no sensor")
        yield ModeledEnergy()
        raise MeterError("CodeCarbon failed: no sensor")

    monkeypatch.setattr(energy_module, "modeled_energy", failing)
    energy = CellEnergy(EnergyMeter("cpu", []), energy_config({"modeled": True}), torch.device("cpu"))
    with energy.measured(lambda: None, lambda window: None):
        pass
    assert energy.row(False) == {"energy": {"absent": {"model": "CodeCarbon failed: no sensor"}}}
    with pytest.raises(KeyError), energy.measured(lambda: None, lambda window: None):
        raise KeyError


def test_arms_of_one_name_are_not_averaged() -> None:
    def one(lr: float, joules: float) -> dict[str, Any]:
        energy = {"scope": "measured:rapl", "cpu_gross_j": joules}
        env = {"cpu": "A processor", "threads": 1}
        return {"status": "ok", "arm": "a", "config": {"lr": lr}, "env": env, "energy": energy}

    assert [line.partition(":")[2] for line in summary([one(1, 5.0), one(2, 9.0), one(1, 5.0)])] == [
        " 5.0 ± 0.0 J a run, measured:rapl, idling included", " 9.0 J a run, measured:rapl, idling included"
    ]  # fmt: skip


def test_the_line_of_a_whole_bench(packages: None, tmp_path: Path) -> None:
    from bpfree.meters import meter

    with meter("cpu", min_s=0.2) as found:
        with found("bench"):
            time.sleep(0.3)
        line = of_all(found, "bench")
    assert "measured:rapl" in line and "package-0" in line and "idling" in line
    absent = EnergyMeter("cpu", [], {"cpu": "no meter here"})
    assert of_all(absent, "bench") == "energy: not measured; no meter here"


def test_the_default_suite_has_the_reason_for_missing_energy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rapl, "ROOT", tmp_path / "none")
    monkeypatch.setattr(bench_main, "SUITE", [CONFIG | {"fit": {"epochs": 1, "batch_size": 256}}])
    assert bench_main.main(["--seeds", "1", "--out", str(tmp_path / "out")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("energy")]
    assert len(lines) == 1
    assert lines[0].startswith("energy: not measured; ") and "does not exist" in lines[0]
