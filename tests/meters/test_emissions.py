"""Carbon is kWh times a factor times the PUE; energy modeled by CodeCarbon is labeled, its errors raised."""

from __future__ import annotations

import logging
import signal
import socket
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import bpfree
from bpfree import BadValue, MeterError
from bpfree.meters import Factor, carbon, factor, modeled_energy

CHEAP = Factor(g_per_kwh=50.0, region="here", year=2024, source="the utility's bill")


def test_a_kilowatt_hour_costs_its_factor_times_the_pue_once() -> None:
    result = carbon({"measured:rapl": 3.6e6, "modelled:tdp": 7.2e6}, CHEAP, pue=1.5)
    assert result["kg"] == {"measured:rapl": pytest.approx(0.075), "modelled:tdp": pytest.approx(0.15)}
    assert {k: v for k, v in result.items() if k != "kg"} == {
        "g_per_kwh": 50.0,
        "region": "here",
        "year": 2024,
        "source": "the utility's bill",
        "pue": 1.5,
    }


def test_no_energy_gives_no_carbon() -> None:
    assert carbon({}, CHEAP)["kg"] == {}


@pytest.mark.parametrize("pue", [0.9, float("nan"), float("inf")])
def test_an_impossible_pue_is_refused(pue: float) -> None:
    with pytest.raises(BadValue, match="pue"):
        carbon({}, CHEAP, pue)


@pytest.mark.parametrize("joules", [-1.0, float("nan")])
def test_impossible_joules_are_refused(joules: float) -> None:
    with pytest.raises(BadValue, match="measured:rapl"):
        carbon({"measured:rapl": joules}, CHEAP)


def test_the_factor_of_a_country_comes_with_its_year_and_source() -> None:
    result = factor("POL")
    assert 400 < result.g_per_kwh < 1000
    assert result.region == "POL" and result.year >= 2020 and "CodeCarbon" in result.source
    assert factor("FRA").g_per_kwh < factor("DEU").g_per_kwh < factor("POL").g_per_kwh


def test_unknown_countries_are_refused_and_not_replaced_by_the_world_mean() -> None:
    with pytest.raises(BadValue, match="did you mean 'POL'"):
        factor("PLO")


def test_the_model_is_labeled_and_restores_global_state(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was accessed")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    before = (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    begin = time.perf_counter()
    with modeled_energy() as modeled:
        inside = time.perf_counter()
        handlers = (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
        while time.perf_counter() - inside < 1.2:
            sum(range(1000))
    assert handlers == before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    assert not (Path(tempfile.gettempdir()) / ".codecarbon.lock").exists()
    assert sorted(modeled.joules) == ["modelled:ram_dimm", "modelled:tdp"]
    assert all(joules > 0 for joules in modeled.joules.values())
    assert 1.2 <= modeled.seconds < time.perf_counter() - begin  # without the time to detect the hardware


def replace_tracker(monkeypatch: pytest.MonkeyPatch, **methods: Any) -> list[str]:
    import codecarbon

    calls: list[str] = []

    class Tracker:
        final_emissions_data = SimpleNamespace(
            cpu_energy=1e-6, ram_energy=2e-6, duration=1.0, cpu_model="some", ram_power=20.0
        )

        def __init__(self, **_: object) -> None:
            calls.append("made")

        def flush(self) -> None:
            calls.append("sampled")

        def _measure_power_and_energy(self) -> None:
            calls.append("counted")

        def start(self) -> None:
            methods.get("start", lambda: None)()

        def stop(self) -> float | None:
            calls.append("stopped")
            return methods.get("stop", lambda: 1e-9)()

    for name, value in methods.items():
        if name not in ("start", "stop"):
            setattr(Tracker.final_emissions_data, name, value)
    monkeypatch.setattr(codecarbon, "OfflineEmissionsTracker", Tracker)
    return calls


def test_kilowatt_hours_become_joules(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = replace_tracker(monkeypatch)
    with modeled_energy() as modeled:
        pass
    assert modeled.joules == {"modelled:tdp": pytest.approx(3.6), "modelled:ram_dimm": pytest.approx(7.2)}
    assert calls.count("made") == 2  # the first detects the hardware, outside the window
    assert calls.count("counted") == 1


def test_each_interval_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model of the memory is a constant power, so its joules are the power times the seconds."""
    monkeypatch.setattr("bpfree.meters.emissions.TICK_S", 0.1)
    for seconds in (0.02, 0.08, 0.1, 0.11, 0.3):
        with modeled_energy() as modeled:
            time.sleep(seconds)
        watts = float(modeled.model.rpartition("memory ")[2].removesuffix(" W"))
        # The time in which CodeCarbon detects the hardware at the start is part of both windows.
        assert modeled.joules["modelled:ram_dimm"] == pytest.approx(
            watts * modeled.seconds, rel=0.05, abs=0.02 * watts
        )
        assert modeled.seconds >= seconds


def test_the_settings_of_the_user_do_not_change_the_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".codecarbon.config").write_text(
        "[codecarbon]\nforce_cpu_power = 500\nforce_ram_power = 500\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CODECARBON_FORCE_RAM_POWER", "700")
    monkeypatch.setenv("codecarbon_output_methods", "csv")
    with modeled_energy() as plain:
        time.sleep(0.05)
    monkeypatch.chdir(tmp_path)
    with modeled_energy() as modeled:
        time.sleep(0.05)
    assert modeled.model == plain.model and "500" not in modeled.model and "700" not in modeled.model
    assert modeled.joules["modelled:tdp"] < 400 * modeled.seconds
    assert [path.name for path in tmp_path.iterdir()] == [".codecarbon.config"]


def log_exception() -> None:
    try:
        raise OSError("no sensor")
    except OSError:
        logging.getLogger("codecarbon").warning("graceful shutdown", exc_info=True)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"start": log_exception}, "no sensor"),
        ({"stop": lambda: None}, "returned no result"),
        ({"cpu_energy": float("nan")}, "cpu_energy"),
        ({"ram_energy": -1.0}, "ram_energy"),
        ({"cpu_energy": None}, "cpu_energy"),
    ],
)
def test_errors_that_codecarbon_only_logs_raise(
    monkeypatch: pytest.MonkeyPatch, methods: dict[str, Any], message: str
) -> None:
    replace_tracker(monkeypatch, **methods)
    with pytest.raises(MeterError, match=message), modeled_energy():
        pass


def test_signal_handlers_are_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    replace_tracker(monkeypatch, start=lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN))
    with modeled_energy():
        assert signal.getsignal(signal.SIGTERM) == before


def test_an_exception_in_the_block_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = replace_tracker(monkeypatch)
    with pytest.raises(KeyError), modeled_energy():
        raise KeyError
    assert calls.count("stopped") == 2


def test_old_names_are_accepted_with_a_warning() -> None:
    for old, new in (("Modelled", "ModeledEnergy"), ("modelled", "modeled_energy")):
        with pytest.warns(FutureWarning, match=new):
            assert getattr(bpfree.meters, old) is getattr(bpfree.meters, new)
