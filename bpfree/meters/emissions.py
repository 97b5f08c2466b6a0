"""Carbon of measured energy, and energy modeled by CodeCarbon."""

from __future__ import annotations

import logging
import math
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from bpfree._errors import BadValue, MeterError
from bpfree._settings import STRICT, did_you_mean
from bpfree.meters.sampling import Repeating

JOULES_PER_KWH = 3.6e6

#: Seconds between two samples of the utilization, and a period after which CodeCarbon never samples by
#: itself.
TICK_S = 1.0
NEVER_S = 10**6


@dataclass(frozen=True, kw_only=True)
class Factor:
    """Emission factor of electricity in a region.

    Attributes:
        g_per_kwh: Grams of CO2 equivalent per kilowatt-hour.
        region: The region.
        year: Year of the value.
        source: Source of the value.

    Raises:
        BadValue: If ``g_per_kwh`` is negative or not finite.
    """

    __pydantic_config__ = STRICT

    g_per_kwh: float
    region: str
    year: int
    source: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.g_per_kwh) and self.g_per_kwh >= 0):
            raise BadValue(f"g_per_kwh = {self.g_per_kwh!r}: expected a finite number of grams, at least 0")


def factor(country: str) -> Factor:
    """Return the emission factor of a country from the table in CodeCarbon; nothing is downloaded.

    Args:
        country: ISO 3166-1 alpha-3 code, such as ``"POL"``.

    Raises:
        BadValue: If the table does not contain the country. (CodeCarbon would use the mean of the world.)
    """
    from codecarbon.input import DataSource

    table: dict[str, dict[str, float | None]] = DataSource().get_global_energy_mix_data()
    entry = table.get(country, {})
    value, year = entry.get("carbon_intensity"), entry.get("year")
    if value is None or year is None:
        raise BadValue(
            f"country = {country!r}: no emission factor is known; {did_you_mean(country, list(table))}"
        )
    return Factor(
        g_per_kwh=float(value),
        region=country,
        year=int(year),
        source=f"CodeCarbon {version('codecarbon')}, global_energy_mix.json",
    )


def carbon(joules: Mapping[str, float], factor: Factor, pue: float = 1.0) -> dict[str, Any]:
    """Return the kilograms of CO2 equivalent of each energy; measured and modeled energies are not added.

    Args:
        joules: Energy by scope, such as ``{"measured:nvml_counter": 3.6e6}``.
        factor: Emission factor.
        pue: Power usage effectiveness of the data center, at least 1. It multiplies the carbon only.

    Returns:
        ``kg`` by scope; ``g_per_kwh``, ``region``, ``year`` and ``source`` of the factor; ``pue``.

    Raises:
        BadValue: If ``pue`` is below 1, or an energy is negative or not finite.
    """
    if not (math.isfinite(pue) and pue >= 1):
        raise BadValue(
            f"pue = {pue!r}: expected at least 1, the ratio of all energy to that of the computers"
        )
    for scope, value in joules.items():
        if not (math.isfinite(value) and value >= 0):
            raise BadValue(f"joules of {scope!r} = {value!r}: expected a finite number of at least 0")
    return {
        "kg": {
            scope: value / JOULES_PER_KWH * factor.g_per_kwh / 1000 * pue for scope, value in joules.items()
        },
        "g_per_kwh": factor.g_per_kwh,
        "region": factor.region,
        "year": factor.year,
        "source": factor.source,
        "pue": pue,
    }


class ModeledEnergy:
    """Result of `modeled_energy`, complete after the ``with`` block.

    Attributes:
        joules: Energy by scope.
        seconds: Duration of the block.
        model: Version of CodeCarbon, and the hardware that it assumes.
    """

    def __init__(self) -> None:
        self.joules: dict[str, float] = {}
        self.seconds = math.nan
        self.model = ""


@contextmanager
def modeled_energy() -> Iterator[ModeledEnergy]:
    """Context manager: model, without measuring, the energy of the CPU and memory of this machine.

    The scope ``modelled:tdp`` is the thermal design power of the CPU times ``0.1 + 0.9 u**3`` for a
    utilization ``u`` of 0 to 1. (This is the model of CodeCarbon 3.3; the version is in
    `ModeledEnergy.model`.) The scope ``modelled:ram_dimm`` is a constant power for each memory module, whose
    number is estimated from the size of the memory. Both are of the entire machine. The utilization is
    sampled once a second, so the result is inaccurate for shorter blocks. The configuration files and
    environment variables of CodeCarbon are not read.

    Raises:
        MeterError: If CodeCarbon failed, which it only logs.
    """
    with _tracker():
        pass  # the first tracker detects the hardware, which takes seconds and is not part of the block
    result = ModeledEnergy()
    with _tracker() as (tracker, problems):
        ticks = Repeating(tracker.flush, TICK_S)
        try:
            yield result
        finally:
            ticks.stop()
        ticks.check()
        # Count the time since the last sample: `stop` counts it only if it is at least 50 ms.
        tracker._measure_power_and_energy()
        kilograms = tracker.stop()
    data = getattr(tracker, "final_emissions_data", None)
    if problems or data is None or kilograms is None:
        raise MeterError(f"CodeCarbon failed: {'; '.join(problems) or 'it returned no result'}")
    result.joules = {
        "modelled:tdp": _joules("cpu_energy", data.cpu_energy),
        "modelled:ram_dimm": _joules("ram_energy", data.ram_energy),
    }
    result.seconds = float(data.duration)
    result.model = f"CodeCarbon {version('codecarbon')}: {data.cpu_model}, memory {data.ram_power:.0f} W"


@contextmanager
def _without_settings() -> Iterator[None]:
    """Context manager: CodeCarbon does not read its configuration files and environment variables.

    They could set a power that replaces the model.
    """
    from codecarbon import emissions_tracker

    module: Any = emissions_tracker  # the function that is replaced is not part of its interface
    read = module.get_hierarchical_config
    module.get_hierarchical_config = dict
    try:
        yield
    finally:
        module.get_hierarchical_config = read


def _joules(name: str, kwh: object) -> float:
    if not (isinstance(kwh, int | float) and math.isfinite(kwh) and kwh >= 0):
        raise MeterError(f"CodeCarbon returned {name} = {kwh!r}; expected a finite number of at least 0")
    return kwh * JOULES_PER_KWH


@contextmanager
def _tracker() -> Iterator[tuple[Any, list[str]]]:
    """Context manager: a running tracker and the list of its problems. Signal handlers are restored."""
    from codecarbon import OfflineEmissionsTracker

    logger = logging.getLogger("codecarbon")
    problems: list[str] = []

    def collect(record: logging.LogRecord) -> bool:
        # CodeCarbon logs exceptions as warnings instead of raising them.
        if record.exc_info or record.levelno >= logging.ERROR:
            problems.append(record.getMessage() + (f": {record.exc_info[1]}" if record.exc_info else ""))
        return False

    main = threading.current_thread() is threading.main_thread()
    current = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handlers = {number: handler for number, handler in current.items() if handler is not None}
    logger.addFilter(collect)
    try:
        try:
            # Its own timer could count an interval twice if it coincides with the stop.
            with _without_settings():
                tracker = OfflineEmissionsTracker(
                    country_iso_code="USA",
                    measure_power_secs=NEVER_S,
                    output_methods=[],
                    allow_multiple_runs=True,
                    tracking_mode="machine",
                    force_mode_cpu_load=True,
                    log_level="warning",
                    pue=1.0,
                )
            if not problems:
                tracker.start()
        finally:
            if main:
                for number, handler in handlers.items():
                    signal.signal(number, handler)
        if problems:
            raise MeterError(f"CodeCarbon failed: {'; '.join(problems)}")
        try:
            yield tracker, problems
        finally:
            tracker.stop()
    finally:
        logger.removeFilter(collect)
