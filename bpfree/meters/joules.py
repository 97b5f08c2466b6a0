"""Joules of named windows, gross and net of idling, each with its scope and with what speaks against it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from time import perf_counter, process_time, sleep
from typing import Any, Literal, Protocol

import torch

from bpfree._errors import MeterError, NotMeasurable
from bpfree.meters.sources import LEAST_HZ
from bpfree.meters.windows import PIECES, Totals, Windows

#: Difference of counter and integral from which a reading is warned of, and tainted.
WARN, TAINT = 0.03, 0.05

#: Change of the idle draw from before to after, of which a reading is warned.
IDLE_DRIFT = 0.1


class Source(Protocol):
    """What an `EnergyMeter` reads: see `GPU` and `CPU`."""

    name: str
    scope: str
    identity: str
    tick_s: float

    def read(self) -> dict[str, float]:
        """``joules``, and other quantities that only grow."""

    def close(self) -> None:
        """Stop."""

    def facts(self) -> dict[str, Any]:
        """About the device."""

    def taints(self) -> list[str]:
        """What spoils every figure."""

    def warnings(self) -> list[str]:
        """What a reader should know."""


@dataclass(frozen=True)
class Reading:
    """The energy that one source gives for some windows; what was not measured is None.

    Attributes:
        scope: What kind of figure it is, and by what.
        window_s: Seconds of the windows together.
        pieces: Stretches of time that they are made of.
        ticks: Ticks of the counter in them; `tick_s` is one tick, measured.
        repeats: How often the work was done in them; all joules are those of one time.
        gross_j: Joules, idling included.
        net_j: Joules less `idle_before_w`, `idle_after_w` (their mean) times the seconds.
        integral_j: Joules by the integral of sampled power, at `samples_hz`.
        ratio: `integral_j` over `gross_j`.
        parts: Joules by domain.
        absent: Why there is no figure.
        tainted: Why the figure must not be used as it stands.
        warnings: What a reader of it should know.
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

    def row(self) -> dict[str, Any]:
        """All that is there, as JSON-able data."""
        return {key: value for key, value in asdict(self).items() if value not in (None, [], {})}


class EnergyMeter:
    """Joules in named windows; windows of different names may be nested, as in a `Stopwatch`.

    Args:
        device: Synchronised whenever a window opens or closes.
        sources: What to read. A source that fails is named in `failed`, and the work goes on.
        absent: Why there are no others, or no longer, by name.
        min_s: A shorter window gives no figure.
        min_ticks: Nor does one of fewer ticks of the counter. A window in ``n`` pieces needs
            ``sqrt(n)`` times as many: at each end of a piece the counter lies up to a tick behind,
            by an amount that is independent from end to end.
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
        """Open the window ``name`` for the length of a ``with`` block."""
        return self._windows(name)

    def idle(self, when: Literal["before", "after"], seconds: float) -> None:
        """Wait, and note what the devices draw meanwhile: the context alive, nothing queued; where nothing is
        measured, do not wait.
        """
        if seconds > 0 and self.sources:
            with self._windows(f"idle_{when}"):
                sleep(seconds)

    def state(self) -> Totals:
        """All windows so far, to go on from in another process."""
        return self._windows.totals()

    def load(self, state: Totals) -> None:
        """Take up a :meth:`state`."""
        self._windows.replace(state)

    def missing_s(self, *names: str) -> float:
        """Seconds by which the windows are too short for the slowest of the sources; 0 if they are not."""
        total = self._sum(names)
        return max([0.0, *(self._needed_s(s, total) - total.get("seconds", 0.0) for s in self.sources)])

    def joules(self, source: str, *names: str) -> float | None:
        """The gross joules of a source so far, without any check; None if it has not been read."""
        return self._sum(names).get(f"{source}.joules")

    def reading(self, source: str, *names: str, repeats: int = 1) -> Reading:
        """What one source says of the windows ``names`` together.

        Raises:
            MeterError: The source failed on the way.
            NotMeasurable: There never was such a source.
        """
        found = next((s for s in self.sources if s.name == source), None)
        if found is None:
            reason = self.absent.get(source, f"{source!r} is no source of this meter")
            raise (MeterError if source in self.failed else NotMeasurable)(reason)
        total = self._sum(names)
        seconds = total.get("seconds", 0.0)
        common: dict[str, Any] = {
            "scope": found.scope,
            "window_s": seconds,
            "pieces": int(total.get(PIECES, 0)),
            "ticks": seconds / found.tick_s,
            "tick_s": found.tick_s,
            "repeats": repeats,
        }
        needed = self._needed_s(found, total)
        if seconds < needed:
            window = (
                f"{seconds:.3g} s in {common['pieces']} pieces, {common['ticks']:.0f} ticks of the counter"
            )
            return Reading(
                **common,
                absent=f"the window is too short ({window}): it takes {needed:.3g} s; repeat the work in it",
            )
        return self._reading(found, total, common)

    def _reading(self, source: Source, total: dict[str, float], common: dict[str, Any]) -> Reading:
        own = {key.partition(".")[2]: v for key, v in total.items() if key.startswith(f"{source.name}.")}
        if not math.isclose(own.pop("seconds"), common["window_s"], rel_tol=1e-6):
            return Reading(**common, absent="a part of the windows was not metered: the run was interrupted")
        gross, seconds, repeats = own.pop("joules"), common["window_s"], common["repeats"]
        if gross <= 0:
            return Reading(**common, absent=f"the counter stood still for {seconds:.3g} s: the meter is dead")
        tainted, warnings = source.taints(), source.warnings()
        idle = self._idle(source.name)
        net = None
        if len(idle) == 2:
            net = gross - sum(idle.values()) / 2 * seconds
            if net < 0:
                # Left out, it would bias the mean of those that are kept.
                warnings.append(
                    "less energy than idling, so that the net is below zero: it is within the noise"
                )
            if abs(idle["after"] - idle["before"]) > IDLE_DRIFT * idle["before"]:
                warnings.append(f"idling went from {idle['before']:.1f} to {idle['after']:.1f} W")
        figures: dict[str, Any] = {f"idle_{when}_w": watts for when, watts in idle.items()}
        if "integral" in own:
            integral, hertz = own.pop("integral"), own.pop("samples") / seconds
            ratio = integral / gross
            figures |= {"integral_j": integral / repeats, "ratio": ratio, "samples_hz": hertz}
            said = f"sampled power gives {ratio:.3f} of the counter's joules"
            if abs(ratio - 1) > TAINT:
                tainted.append(f"{said}; more than {TAINT:.0%} apart")
            elif abs(ratio - 1) > WARN:
                warnings.append(f"{said}; more than {WARN:.0%} apart")
            if hertz < LEAST_HZ:
                tainted.append(f"power was sampled at {hertz:.1f} Hz; it takes {LEAST_HZ:.0f}")
        return Reading(
            **common,
            gross_j=gross / repeats,
            net_j=None if net is None else net / repeats,
            **figures,
            parts={name: joules / repeats for name, joules in own.items()},
            tainted=tainted,
            warnings=warnings,
        )

    def readings(self, *names: str, repeats: int = 1) -> dict[str, Reading]:
        """The reading of every source that did not fail; one that fails now is named in `failed`."""
        found = {}
        for source in self.sources:
            try:
                found[source.name] = self.reading(source.name, *names, repeats=repeats)
            except MeterError as error:
                self.fail(source.name, error)
        return found

    def facts(self) -> dict[str, dict[str, Any]]:
        """About the devices of the sources."""
        return {source.name: source.facts() for source in self.sources}

    def _idle(self, source: str) -> dict[str, float]:
        """Watts, by the same counter."""
        totals = self._windows.totals()
        found = {when: totals.get(f"idle_{when}", {}) for when in ("before", "after")}
        return {when: t[f"{source}.joules"] / t["seconds"] for when, t in found.items() if t.get("seconds")}

    def _needed_s(self, source: Source, total: Mapping[str, float]) -> float:
        return max(self.min_s, self.min_ticks * math.sqrt(total.get(PIECES, 1)) * source.tick_s)

    def _sum(self, names: Sequence[str]) -> dict[str, float]:
        totals = self._windows.totals()
        found: dict[str, float] = {}
        for name in names:
            for quantity, value in totals.get(name, {}).items():
                found[quantity] = found.get(quantity, 0.0) + value
        return found

    def _read(self) -> dict[str, float]:
        now = {"seconds": perf_counter(), "cpu_seconds": process_time()}
        for source in list(self.sources):
            try:
                read = source.read() | {"seconds": now["seconds"]}
                now |= {f"{source.name}.{key}": value for key, value in read.items()}
            except Exception as error:  # noqa: BLE001 (whatever a meter dies of, the work that it meters goes on)
                self.sources.remove(source)
                source.close()
                told = error if isinstance(error, MeterError) else None
                self.fail(source.name, told or MeterError(f"{type(error).__name__}: {error}"))
        return now

    def fail(self, source: str, error: MeterError) -> None:
        """Note that a source is no good, and why."""
        self.absent[source] = str(error)
        self.failed.add(source)

    def check(self) -> None:
        """Raise if a source has failed.

        Raises:
            MeterError: What it failed of.
        """
        if self.failed:
            raise MeterError("; ".join(self.absent[source] for source in sorted(self.failed)))
