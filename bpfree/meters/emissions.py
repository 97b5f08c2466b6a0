"""Carbon: kWh times a factor that says where it comes from, times the PUE, once. And CodeCarbon's model."""

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

#: Seconds from one sample of the utilisation to the next, and after which CodeCarbon would sample itself.
TICK_S = 1.0
NEVER_S = 10**6


@dataclass(frozen=True, kw_only=True)
class Factor:
    """Grams of CO2 equivalent that a kilowatt-hour costs in a region.

    Attributes:
        g_per_kwh: The value.
        region: Where it holds.
        year: Of which year it is.
        source: Who says so.
    """

    __pydantic_config__ = STRICT

    g_per_kwh: float
    region: str
    year: int
    source: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.g_per_kwh) and self.g_per_kwh >= 0):
            raise BadValue(f"g_per_kwh = {self.g_per_kwh!r}: expected grams, finite and >= 0")


def factor(country: str) -> Factor:
    """The factor of a country, by the table that CodeCarbon brings along; nothing is downloaded.

    Args:
        country: ISO 3166-1 alpha-3, such as ``POL``.

    Raises:
        BadValue: The table has no such country. (CodeCarbon itself would take the world's mean.)
    """
    from codecarbon.input import DataSource

    table: dict[str, dict[str, Any]] = DataSource().get_global_energy_mix_data()
    if country not in table or table[country].get("carbon_intensity") is None:
        raise BadValue(f"country = {country!r}: no factor is known; {did_you_mean(country, list(table))}")
    found = table[country]
    return Factor(
        g_per_kwh=float(found["carbon_intensity"]),
        region=country,
        year=int(found["year"]),
        source=f"CodeCarbon {version('codecarbon')}, global_energy_mix.json",
    )


def carbon(joules: Mapping[str, float], factor: Factor, pue: float = 1.0) -> dict[str, Any]:
    """Kilograms of CO2 equivalent of each figure by itself: measured and modelled are never added up.

    Args:
        joules: Energy by its scope, such as ``{"measured:nvml_counter": 3.6e6}``.
        factor: What a kilowatt-hour costs.
        pue: Power usage effectiveness of the data centre, at least 1. It multiplies the carbon here and
            nothing else.

    Raises:
        BadValue: ``pue`` is below 1, or an energy is negative or not finite.
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


class Modelled:
    """What CodeCarbon's model says of a ``with`` block of `modelled`, by scope, once it is over."""

    def __init__(self) -> None:
        self.joules: dict[str, float] = {}
        self.seconds = math.nan
        self.model = ""


@contextmanager
def modelled() -> Iterator[Modelled]:
    """Model, not measure, the energy of this machine's CPU and memory over a ``with`` block.

    The CPU's, ``modelled:tdp``, is its thermal design power times ``0.1 + 0.9 u**3`` for a utilisation ``u``
    of 0 to 1: a tenth of it when idle, far less than half of it at half the load. (So CodeCarbon 3.3; the
    version stands in `Modelled.model`.) The memory's, ``modelled:ram_dimm``, is a constant for each module,
    guessed from its size. Both are of the whole machine; the utilisation is sampled once a second, so that
    it says little of shorter work. CodeCarbon's settings files and environment variables are not read.

    Raises:
        MeterError: CodeCarbon failed; it would only have logged that.
    """
    with _started():
        pass  # it looks at the hardware, for seconds, the first time only: outside the window
    found = Modelled()
    with _started() as (tracker, complaints):
        ticks = Repeating(tracker.flush, TICK_S)
        try:
            yield found
        finally:
            ticks.stop()
        ticks.check()
        # What has passed since the last tick, once: `stop` books it only if it is 50 ms or more.
        tracker._measure_power_and_energy()
        kilograms = tracker.stop()
    data = getattr(tracker, "final_emissions_data", None)
    if complaints or data is None or kilograms is None:
        raise MeterError(f"CodeCarbon failed: {'; '.join(complaints) or 'it gives no figure'}")
    found.joules = {
        "modelled:tdp": _joules("cpu_energy", data.cpu_energy),
        "modelled:ram_dimm": _joules("ram_energy", data.ram_energy),
    }
    found.seconds = float(data.duration)
    found.model = f"CodeCarbon {version('codecarbon')}: {data.cpu_model}, memory {data.ram_power:.0f} W"


@contextmanager
def _without_settings() -> Iterator[None]:
    """Keep CodeCarbon from its settings files, in the home and the working folder, and its environment
    variables: a forced power would be taken for a model.
    """
    from codecarbon import emissions_tracker

    module: Any = emissions_tracker
    read = module.get_hierarchical_config
    module.get_hierarchical_config = dict
    try:
        yield
    finally:
        module.get_hierarchical_config = read


def _joules(name: str, kwh: object) -> float:
    if not (isinstance(kwh, int | float) and math.isfinite(kwh) and kwh >= 0):
        raise MeterError(f"CodeCarbon gives {name} = {kwh!r}; expected a finite number of at least 0")
    return kwh * JOULES_PER_KWH


@contextmanager
def _started() -> Iterator[tuple[Any, list[str]]]:
    """A tracker at work, and what it complains of; the signal handlers are as they were before."""
    from codecarbon import OfflineEmissionsTracker

    logger = logging.getLogger("codecarbon")
    complaints: list[str] = []

    def note(record: logging.LogRecord) -> bool:
        # What CodeCarbon swallows it logs as a warning, with the exception.
        if record.exc_info or record.levelno >= logging.ERROR:
            complaints.append(record.getMessage() + (f": {record.exc_info[1]}" if record.exc_info else ""))
        return False

    main = threading.current_thread() is threading.main_thread()
    known = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handlers = {number: handler for number, handler in known.items() if handler is not None}
    logger.addFilter(note)
    try:
        try:
            # Its own clock would book an interval twice where a tick falls together with the stop.
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
            if not complaints:
                tracker.start()
        finally:
            if main:
                for number, handler in handlers.items():
                    signal.signal(number, handler)
        if complaints:
            raise MeterError(f"CodeCarbon failed: {'; '.join(complaints)}")
        try:
            yield tracker, complaints
        finally:
            tracker.stop()
    finally:
        logger.removeFilter(note)
