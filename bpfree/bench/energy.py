"""Energy and carbon of a cell, as the section ``energy`` of a config requests them and a row stores them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Annotated

import torch
from annotated_types import Ge

from bpfree._errors import BadValue, MeterError
from bpfree._renamed import with_new_keys
from bpfree._settings import STRICT, validate
from bpfree.bench.conditions import machine
from bpfree.bench.files import Mapped, Values
from bpfree.bench.results import Row
from bpfree.bench.statistics import estimate
from bpfree.bench.terminal import visible
from bpfree.meters import EnergyMeter, Factor, ModeledEnergy, Reading, carbon, factor, meter, modeled_energy

#: Names that rows and cell ids keep, by the names of today.
OLD_NAMES = {"modeled": "modelled"}

Seconds = Annotated[float, Ge(0)]
Window = Callable[[str], AbstractContextManager[None]]

#: Windows of training, the repeated runs of a cell that is too short included.
TRAIN, AGAIN = "train", "train_again"

#: The other windows of a cell, which are metered separately.
BESIDE = ("warmup", "calibrate", "cache", "eval", "io", "test")


@dataclass(frozen=True, kw_only=True)
class EnergyConfig:
    """How the energy of each cell is measured.

    Attributes:
        idle_s: Seconds of idling before and after the training, for the net energy.
        min_s: Training of fewer seconds gives no energy.
        warmup_s: Seconds of training other nets of the same kind beforehand.
        repeat_s: Shorter training is repeated for up to so many seconds, and the joules are divided.
        modeled: Whether to add CodeCarbon's model of CPU and memory, which is no measurement.
        country: ISO 3166-1 alpha-3 code of the grid, for the carbon.
        factor: Carbon of a kilowatt-hour in place of the country's: g_per_kwh, region, year, source.
        pue: Power usage effectiveness of the data center.
    """

    __pydantic_config__ = STRICT

    idle_s: Seconds = 30.0
    min_s: Seconds = 10.0
    warmup_s: Seconds = 5.0
    repeat_s: Seconds = 60.0
    modeled: bool = False
    country: str | None = None
    factor: Mapped | None = None
    pue: Annotated[float, Ge(1)] = 1.0

    def record(self) -> Row:
        """The settings as plain data, under the names that rows and cell ids have."""
        return {OLD_NAMES.get(name, name): value for name, value in asdict(self).items()}


def energy_config(values: Values, where: str = "") -> EnergyConfig:
    """The checked section ``energy`` of a config.

    Raises:
        BadValue: naming each key that is unknown or has a bad value.
    """
    values = with_new_keys(values, {old: new for new, old in OLD_NAMES.items()}, f"{where}energy")
    settings = validate(EnergyConfig, values, f"{where}energy")
    if settings.country is not None and settings.factor is not None:
        raise BadValue(f"{where}energy: country and factor both set the carbon factor; give one of them")
    grid(settings, where)
    return settings


def grid(settings: EnergyConfig, where: str = "") -> Factor | None:
    """The carbon of a kilowatt-hour, if one is named.

    Raises:
        BadValue: If the country is unknown, or a key of the factor is missing.
    """
    if settings.factor is not None:
        return validate(Factor, settings.factor, f"{where}energy.factor")
    return None if settings.country is None else factor(settings.country)


class CellEnergy:
    """The windows of a cell: their seconds, and their joules if the config has a section ``energy``.

    Attributes:
        meter: Measures the windows; without energy it is a stopwatch.
    """

    def __init__(self, meter: EnergyMeter, settings: EnergyConfig | None, device: torch.device) -> None:
        self.meter, self.settings = meter, settings
        self._headline = "gpu" if device.type == "cuda" else "cpu"
        self._repeats = 1
        self._model: ModeledEnergy | None = None

    def joules(self) -> float | None:
        """Joules of the training so far, of the device that trains; None if they are not metered."""
        return self.meter.joules(self._headline, TRAIN)

    @contextmanager
    def measured(
        self, warm_up: Callable[[], object], again: Callable[[Window], object], cold: bool = False
    ) -> Iterator[None]:
        """A context for a training: with warm-up and idling before it, repetitions and idling after it.

        Args:
            warm_up: Trains another net for a short time.
            again: Trains a new net in the same way; its argument opens the windows.
            cold: Whether the first steps are slower, so that a warm-up is needed even without energy.
        """
        if cold:
            with self.meter("warmup"):
                warm_up()
        if self.settings is None:
            yield
            return
        if self.meter.sources:
            begin = perf_counter()
            with self.meter("warmup"):
                while perf_counter() - begin < self.settings.warmup_s:
                    warm_up()
            self.meter.idle("before", self.settings.idle_s)
        with self._modeled() if self.settings.modeled else nullcontext():
            yield
        if not self.meter.sources:
            return
        begin = perf_counter()
        while self.meter.missing_s(TRAIN, AGAIN) > 0 and perf_counter() - begin < self.settings.repeat_s:
            again(lambda name: self.meter(f"{name}_again"))
            self._repeats += 1
        self.meter.idle("after", self.settings.idle_s)

    @contextmanager
    def _modeled(self) -> Iterator[None]:
        """Run CodeCarbon's model of the enclosed work; if the model fails, the row has the reason."""
        stack, done = ExitStack(), False
        try:
            self._model = stack.enter_context(modeled_energy())
        except MeterError as error:
            self.meter.absent["model"] = str(error)
        try:
            with stack:
                yield
                done = True
        except MeterError as error:
            if not done:
                raise
            self._model, self.meter.absent["model"] = None, str(error)

    def has_curve(self, row: Row) -> bool:
        """Whether `joules` is valid throughout the training: it is not if the training was repeated."""
        return self._repeats == 1 and f"{self._headline}_gross_j" in row.get("energy", {})

    def seconds(self) -> Row:
        """Wall-clock and CPU seconds of each window."""
        kinds = {"s": "seconds", "cpu_s": "cpu_seconds"}
        return {
            f"{name}_{kind}": grown[quantity]
            for name, grown in self.meter.state().items()
            for kind, quantity in kinds.items()
            if quantity in grown
        }

    def row(self, resumed: bool) -> Row:
        """``energy``, ``device`` and ``carbon`` of a row; empty without a section ``energy``."""
        if self.settings is None:
            return {}
        readings = self.meter.readings(TRAIN, AGAIN, repeats=self._repeats)
        result: Row = {"energy": self._energy(readings, resumed)}
        if facts := self.meter.facts():
            result["device"] = facts
        usable = {
            r.scope: r.gross_j for r in readings.values() if _usable(r, resumed) and r.gross_j is not None
        }
        joules = usable | (self._model.joules if self._model else {})
        grams = grid(self.settings)
        if grams is not None and joules:
            result["carbon"] = carbon(joules, grams, self.settings.pue)
        return result

    def _energy(self, readings: Mapping[str, Reading], resumed: bool) -> Row:
        result: Row = {}
        absent, tainted, beside = dict(self.meter.absent), {}, {}
        for name, reading in readings.items():
            row = reading.row()
            if reading.absent is not None:
                absent[name] = reading.absent
            elif not _usable(reading, resumed):
                row["tainted"] = [*reading.tainted, *([RESUMED] if resumed else [])]
                tainted[name] = row
            elif name == self._headline:
                gross, net = row.pop("gross_j"), row.pop("net_j", None)
                result |= row | {f"{name}_gross_j": gross} | ({} if net is None else {f"{name}_net_j": net})
                result |= self._others(name)
            else:
                beside[name] = row
        for key, value in (("beside", beside), ("tainted", tainted), ("absent", absent)):
            if value:
                result[key] = value
        if self._model is not None:
            result["modelled"] = {
                "joules": self._model.joules,
                "window_s": self._model.seconds,
                "window": "the training as it was run: steps, evaluation, checkpoints",
                "model": self._model.model,
            }
        return result

    def _others(self, source: str) -> Row:
        """Joules of the other windows, where they are long enough."""
        windows = {name: self.meter.reading(source, name) for name in BESIDE if name in self.meter.state()}
        return {
            f"{name}_j": r.gross_j for name, r in windows.items() if r.gross_j is not None and not r.tainted
        }


RESUMED = "the run was stopped and resumed: the use of the device before that is unknown"


def _usable(reading: Reading, resumed: bool) -> bool:
    return reading.absent is None and not reading.tainted and not resumed


@contextmanager
def metering(settings: EnergyConfig | None, device: torch.device) -> Iterator[CellEnergy]:
    """The meter of a cell; without settings it measures seconds alone."""
    if settings is None:
        yield CellEnergy(EnergyMeter(device, [], {}), None, device)
        return
    with meter(device, min_s=settings.min_s) as energy_meter:
        yield CellEnergy(energy_meter, settings, device)


def summary(rows: Iterable[Row]) -> list[str]:
    """Lines that summarize the rows' energy sections; none if there are none."""
    metered = [row for row in rows if row["status"] == "ok" and "energy" in row]
    # Arms of another setting or machine may have the same name.
    arms: dict[tuple[str, ...], list[Row]] = {}
    for row in metered:
        key = (
            row["arm"],
            json.dumps(row.get("config"), sort_keys=True),
            machine(row) if "env" in row else "",
        )
        arms.setdefault(key, []).append(row["energy"])
    named = [arm for arm, *_ in arms]
    lines = [
        line
        for (arm, _, where), energies in arms.items()
        for line in _figures(visible(arm) + (f" ({where})" if named.count(arm) > 1 else ""), energies)
    ]
    reasons: dict[str, int] = {}
    for row in metered:
        for reason in _reasons(row["energy"]):
            reasons[reason] = reasons.get(reason, 0) + 1
    return lines + [
        f"energy: none for {n} of {len(metered)} runs by the {reason}" for reason, n in reasons.items()
    ]


def _figures(arm: str, energies: Sequence[Row]) -> Iterator[str]:
    measured = [energy for energy in energies if "scope" in energy]
    figures = [(energy["scope"], _joules(energy), "idling included") for energy in measured]
    for energy in energies:
        model = energy.get("modelled", {"joules": {}})
        figures += [(scope, joules, "not measured") for scope, joules in model["joules"].items()]
    for scope, note in sorted({(scope, note) for scope, _, note in figures}):
        mean = estimate([joules for s, joules, _ in figures if s == scope])
        spread = "" if mean.half is None else f" ± {mean.half:.1f}"
        yield f"energy of {arm}: {mean.mean:.1f}{spread} J a run, {scope}, {note}"


def _reasons(energy: Row) -> list[str]:
    tainted = {
        name: f"tainted: {'; '.join(row['tainted'])}" for name, row in energy.get("tainted", {}).items()
    }
    return [f"{name}: {reason}" for name, reason in (energy.get("absent", {}) | tainted).items()]


def _joules(energy: Row) -> float:
    return float(next(value for key, value in energy.items() if key.endswith("_gross_j")))


def of_all(energy_meter: EnergyMeter, window: str) -> str:
    """A line with the energy of the CPU packages during a whole bench."""
    if "cpu" in energy_meter.absent:
        return f"energy: not measured; {energy_meter.absent['cpu']}"
    reading = energy_meter.reading("cpu", window)
    if reading.gross_j is None:
        return f"energy: not measured; {reading.absent}"
    parts = ", ".join(f"{name} {joules:.0f} J" for name, joules in reading.parts.items())
    return (
        f"energy of all cells together: {reading.gross_j:.0f} J in {reading.window_s:.0f} s, {reading.scope} "
        f"({parts}); idling and other processes on this machine included"
    )
