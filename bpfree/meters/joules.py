"""Energy of named windows, gross and net of idle energy, with its scope and with reasons not to trust it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from time import perf_counter, process_time, sleep
from typing import Literal, Protocol

import torch

from bpfree._errors import MeterError, NotMeasurable
from bpfree.meters.nvml import Facts
from bpfree.meters.sources import LEAST_HZ
from bpfree.meters.windows import PIECES, Totals, Windows

#: Relative difference of counter and integral above which a reading has a warning, and is tainted.
WARN, TAINT = 0.03, 0.05

#: Relative change of the idle power from before to after, above which a reading has a warning.
IDLE_DRIFT = 0.1


class Source(Protocol):
    """A source of energy readings for an `EnergyMeter`, such as `GPU` and `CPU`."""

    name: str
    scope: str
    identity: str
    tick_s: float

    def read(self) -> dict[str, float]:
        """Return ``joules`` and other quantities that never decrease."""

    def close(self) -> None:
        """Stop reading."""

    def facts(self) -> Facts:
        """Return facts about the device, for a row."""

    def taints(self) -> list[str]:
        """Return reasons why no reading can be trusted."""

    def warnings(self) -> list[str]:
        """Return warnings."""


@dataclass(frozen=True)
class Reading:
    """The energy of some windows, from one source. Values that were not measured are None.

    Attributes:
        scope: What was measured, and how, such as ``"measured:rapl"``.
        window_s: Total duration of the windows in seconds.
        pieces: Number of time intervals that the windows consist of.
        ticks: Number of updates of the counter in the windows; `tick_s` is the time between two updates.
        repeats: Number of repetitions of the work; all joules are per repetition.
        gross_j: Joules, including idle energy.
        net_j: Joules without idle energy, the mean of `idle_before_w` and `idle_after_w` times the seconds.
        integral_j: Joules from the integral of the power, sampled at `samples_hz`.
        ratio: `integral_j` divided by `gross_j`.
        parts: Joules by domain.
        absent: Reason why there is no figure.
        tainted: Reasons why the figure must not be used.
        warnings: Warnings.
    """

    scope: str
    window_s: float
    pieces: int
    ticks: float
    tick_s: float
    repeats: int = 1
    gross_j: float | None = None
    net_j: float | None = None
    idle_before_w: float | None = None
    idle_after_w: float | None = None
    integral_j: float | None = None
    ratio: float | None = None
    samples_hz: float | None = None
    parts: dict[str, float] = field(default_factory=dict)
    absent: str | None = None
    tainted: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def row(self) -> dict[str, object]:
        """Return all values that are not empty, as a dict of JSON values."""
        return {key: value for key, value in asdict(self).items() if value not in (None, [], {})}


class EnergyMeter:
    """Measures energy in named windows. Windows of different names may be nested, as in a `Stopwatch`.

    Args:
        device: Torch device, synchronized whenever a window opens or closes.
        sources: Sources to read. A source that fails is added to `failed`, and the measured code continues.
        absent: Reasons why other sources are not available, by name.
        min_s: Minimum duration of a window in seconds; a shorter window has no figure.
        min_ticks: Minimum number of updates of the counter in a window. A window of ``n`` pieces needs
            ``sqrt(n)`` times as many, because each end of a piece has an independent error of up to one tick.
    """

    def __init__(
        self,
        device: torch.device | str,
        sources: Sequence[Source],
        absent: Mapping[str, str] | None = None,
        min_s: float = 10.0,
        min_ticks: float = 100.0,
    ) -> None:
        self.sources, self.absent = list(sources), dict(absent or {})
        self.failed: set[str] = set()
        self.min_s, self.min_ticks = min_s, min_ticks
        self.device = torch.device(device)
        self._windows = Windows(device, self._read)

    def __call__(self, name: str) -> AbstractContextManager[None]:
        """Context manager: open the window ``name``."""
        return self._windows(name)

    def idle(self, when: Literal["before", "after"], seconds: float) -> None:
        """Wait, and measure the idle power. Returns at once if there is no source."""
        if seconds > 0 and self.sources:
            with self._windows(f"idle_{when}"):
                sleep(seconds)

    def state(self) -> Totals:
        """Return the totals of all windows, for `load`."""
        return self._windows.totals()

    def load(self, state: Totals) -> None:
        """Replace the totals by those of `state`."""
        self._windows.replace(state)

    def missing_s(self, *names: str) -> float:
        """Return the seconds that the windows lack for the slowest source; 0 if they are long enough."""
        total = self._sum(names)
        return max([0.0, *(self._needed_s(s, total) - total.get("seconds", 0.0) for s in self.sources)])

    def joules(self, source: str, *names: str) -> float | None:
        """Return the gross joules of a source so far, without checks; None if it has not been read."""
        return self._sum(names).get(f"{source}.joules")

    def reading(self, source: str, *names: str, repeats: int = 1) -> Reading:
        """Return the energy of the windows ``names`` together, from one source.

        Raises:
            MeterError: If the source has failed.
            NotMeasurable: If there is no such source.
        """
        reader = next((s for s in self.sources if s.name == source), None)
        if reader is None:
            reason = self.absent.get(source, f"this meter has no source {source!r}")
            raise (MeterError if source in self.failed else NotMeasurable)(reason)
        total = self._sum(names)
        seconds = total.get("seconds", 0.0)
        reading = Reading(
            scope=reader.scope,
            window_s=seconds,
            pieces=int(total.get(PIECES, 0)),
            ticks=seconds / reader.tick_s,
            tick_s=reader.tick_s,
            repeats=repeats,
        )
        needed = self._needed_s(reader, total)
        if seconds < needed:
            window = f"{seconds:.3g} s in {reading.pieces} pieces, {reading.ticks:.0f} ticks of the counter"
            return replace(
                reading,
                absent=f"the window is too short ({window}): expected {needed:.3g} s; repeat the work",
            )
        return self._reading(reader, total, reading)

    def _reading(self, source: Source, total: dict[str, float], reading: Reading) -> Reading:
        values = {key.partition(".")[2]: v for key, v in total.items() if key.startswith(f"{source.name}.")}
        if not math.isclose(values.pop("seconds"), reading.window_s, rel_tol=1e-6):
            return replace(reading, absent="a part of the windows was not measured: the run was interrupted")
        gross, seconds, repeats = values.pop("joules"), reading.window_s, reading.repeats
        if gross <= 0:
            return replace(reading, absent=f"the counter did not change in {seconds:.3g} s")
        tainted, warnings = source.taints(), source.warnings()
        idle = self._idle(source.name)
        net = None
        if len(idle) == 2:
            net = gross - sum(idle.values()) / 2 * seconds
            if net < 0:
                # Not omitted, because that would bias the mean of the others.
                warnings.append(
                    "the net energy is negative: the energy is below that of idling, within the noise"
                )
            if abs(idle["after"] - idle["before"]) > IDLE_DRIFT * idle["before"]:
                warnings.append(f"the idle power changed from {idle['before']:.1f} to {idle['after']:.1f} W")
        reading = replace(reading, idle_before_w=idle.get("before"), idle_after_w=idle.get("after"))
        if "integral" in values:
            integral, hertz = values.pop("integral"), values.pop("samples") / seconds
            ratio = integral / gross
            reading = replace(reading, integral_j=integral / repeats, ratio=ratio, samples_hz=hertz)
            text = f"sampled power gives {ratio:.3f} of the counter's joules"
            if abs(ratio - 1) > TAINT:
                tainted.append(f"{text}; more than {TAINT:.0%} apart")
            elif abs(ratio - 1) > WARN:
                warnings.append(f"{text}; more than {WARN:.0%} apart")
            if hertz < LEAST_HZ:
                tainted.append(f"power was sampled at {hertz:.1f} Hz; expected at least {LEAST_HZ:.0f} Hz")
        return replace(
            reading,
            gross_j=gross / repeats,
            net_j=None if net is None else net / repeats,
            parts={name: joules / repeats for name, joules in values.items()},
            tainted=tainted,
            warnings=warnings,
        )

    def readings(self, *names: str, repeats: int = 1) -> dict[str, Reading]:
        """Return the reading of each source; sources that fail are left out and added to `failed`."""
        readings = {}
        for source in self.sources:
            try:
                readings[source.name] = self.reading(source.name, *names, repeats=repeats)
            except MeterError as error:
                self.fail(source.name, error)
        return readings

    def facts(self) -> dict[str, Facts]:
        """Return the facts of each source."""
        return {source.name: source.facts() for source in self.sources}

    def _idle(self, source: str) -> dict[str, float]:
        """Return the idle power in watts, before and after, by the same counter."""
        totals = self._windows.totals()
        windows = {when: totals.get(f"idle_{when}", {}) for when in ("before", "after")}
        return {when: t[f"{source}.joules"] / t["seconds"] for when, t in windows.items() if t.get("seconds")}

    def _needed_s(self, source: Source, total: Mapping[str, float]) -> float:
        return max(self.min_s, self.min_ticks * math.sqrt(total.get(PIECES, 1)) * source.tick_s)

    def _sum(self, names: Sequence[str]) -> dict[str, float]:
        totals = self._windows.totals()
        sums: dict[str, float] = {}
        for name in names:
            for quantity, value in totals.get(name, {}).items():
                sums[quantity] = sums.get(quantity, 0.0) + value
        return sums

    def _read(self) -> dict[str, float]:
        now = {"seconds": perf_counter(), "cpu_seconds": process_time()}
        for source in list(self.sources):
            try:
                read = source.read() | {"seconds": now["seconds"]}
                now |= {f"{source.name}.{key}": value for key, value in read.items()}
            except Exception as error:  # noqa: BLE001 (no failure of a meter ends the measured code)
                self.sources.remove(source)
                source.close()
                meter_error = error if isinstance(error, MeterError) else None
                self.fail(source.name, meter_error or MeterError(f"{type(error).__name__}: {error}"))
        return now

    def fail(self, source: str, error: MeterError) -> None:
        """Record that a source has failed, and why."""
        self.absent[source] = str(error)
        self.failed.add(source)

    def check(self) -> None:
        """Raise an error if a source has failed.

        Raises:
            MeterError: With the reasons of all failed sources.
        """
        if self.failed:
            raise MeterError("; ".join(self.absent[source] for source in sorted(self.failed)))
