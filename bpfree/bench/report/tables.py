"""The tables of a report."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from bpfree.bench.arms import PROTOCOLS, Arm, Group, figure
from bpfree.bench.measures import MEASURES, Comparison, Measure, readable, short
from bpfree.bench.results import Row
from bpfree.bench.statistics import Estimate, estimate
from bpfree.bench.targets import COSTS, TargetCost, target_cost

#: The costs of the main table.
COLUMNS = ("train_s", "energy_j", "train_flops", "peak_alloc", "saved_bytes")

#: When idling was measured: around the training.
EDGES = ("before", "after")


@dataclass(frozen=True)
class Figure:
    """A cell of a table: its text, a second line, what it is sorted by, and a class."""

    text: str
    note: str = ""
    order: float | str | None = None
    kind: str = ""


@dataclass
class Table:
    """A table that can be sorted and filtered.

    Attributes:
        id: Its name in the page.
        caption: What it shows.
        heads: Names of the columns; the first names the row.
        rows: Each a figure per column.
        anchors: Where the name of a row leads to, by row.
        filters: Columns with a choice of what to show.
    """

    id: str
    caption: str
    heads: list[str]
    rows: list[list[Figure]] = field(default_factory=list)
    anchors: list[str] = field(default_factory=list)
    filters: list[int] = field(default_factory=list)

    def without_empty(self) -> Table:
        """The same without the columns in which nothing stands."""
        kept = [i for i in range(len(self.heads)) if any(row[i].text not in ("", "–") for row in self.rows)]
        rows = [[row[i] for i in kept] for row in self.rows]
        filters = [
            kept.index(i) for i in self.filters if i in kept and len({row[i].text for row in self.rows}) > 1
        ]
        return Table(self.id, self.caption, [self.heads[i] for i in kept], rows, self.anchors, filters)


NOTHING = Figure("–")


def number(value: float) -> str:
    """Three figures or more, without an exponent where that can be read."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:#.3g}".rstrip(".")


def results(found: Sequence[Group], comparisons: Sequence[Comparison]) -> Table:
    effects = {(c.group, c.arm, c.measure.id): c for c in comparisons}
    heads = ["arm", "setting", "level", "seeds", "test accuracy, %", "against backprop, points"]
    heads += [_head(MEASURES[name]) for name in COLUMNS]
    caption = "Means over seeds with 95 % intervals; below each cost its ratio to backpropagation's"
    table = Table("results", caption, heads, filters=[1, 2])
    for g, group in enumerate(found):
        for a, arm in enumerate(group.arms):
            accuracy = estimate([100 * v for v in MEASURES["accuracy"].by_seed(arm).values()])
            against = effects.get((group.title, arm.name, "accuracy"))
            costs = [
                _cost(MEASURES[name], arm, effects.get((group.title, arm.name, name))) for name in COLUMNS
            ]
            table.anchors.append(f"rows-{g}-{a}")
            table.rows.append([
                Figure(arm.name, "the baseline" if arm is group.baseline else ""),
                Figure(group.setting, PROTOCOLS[group.protocol]),
                Figure(str(arm.rows[0]["locality"])),
                Figure(str(len(arm.rows)), order=len(arm.rows)),
                Figure(_accuracy(accuracy), order=accuracy.mean),
                NOTHING if against is None else _against(against),
                *costs,
            ])  # fmt: skip
    return table.without_empty()


def _against(comparison: Comparison) -> Figure:
    return Figure(short(comparison), comparison.says, comparison.effect.value, _kind(comparison))


def _accuracy(found: Estimate) -> str:
    return f"{found.mean:.2f}" + ("" if found.half is None else f" ± {found.half:.2f}")


def _plus_minus(mean: float, half: float | None) -> str:
    """A mean with as many digits as its interval gives sense to: two of the half width."""
    if half is None or half <= 1e-9 * abs(mean):
        return number(mean)
    digits = max(0, 1 - math.floor(math.log10(half)))
    return f"{mean:,.{digits}f} ± {half:,.{digits}f}"


def _cost(measure: Measure, arm: Arm, comparison: Comparison | None) -> Figure:
    measure = readable(measure, [arm])
    values = [value * measure.scale for value in measure.by_seed(arm).values()]
    if not values:
        return NOTHING
    found = estimate(values)
    text = _in_unit(_plus_minus(found.mean, found.half), measure)
    note = "" if comparison is None else short(comparison)
    return Figure(text, note, found.mean / measure.scale, "" if comparison is None else _kind(comparison))


def _head(measure: Measure) -> str:
    """The name of a column: with the unit, if that is the same for all."""
    return measure.label if len(measure.units) > 1 else f"{measure.label}, {measure.unit}"


def _in_unit(text: str, measure: Measure) -> str:
    return f"{text} {measure.unit}" if len(measure.units) > 1 else text


def _kind(comparison: Comparison) -> str:
    return "better" if comparison.wins else "worse" if comparison.loses else ""


def targets(found: Sequence[Group], goals: Sequence[float]) -> Table:
    heads = [
        "arm",
        "setting",
        "target, %",
        "seeds that reached it",
        *(_head(MEASURES[name]) for name in COSTS),
    ]
    table = Table(
        "targets", "Median over seeds of the cost to a target of validation accuracy", heads, filters=[1, 2]
    )
    for g, group in enumerate(found):
        for (a, arm), goal in itertools.product(enumerate(group.arms), goals):
            cost = target_cost(arm, goal)
            table.anchors.append(f"rows-{g}-{a}")
            table.rows.append([
                Figure(arm.name), Figure(group.setting, PROTOCOLS[group.protocol]),
                Figure(f"{100 * goal:g}", order=goal),
                Figure(f"{cost.hits} of {cost.n}", order=cost.hits / cost.n),
                *(_median(cost, MEASURES[name], arm) for name in COSTS),
            ])  # fmt: skip
    return table.without_empty()


def _median(cost: TargetCost, measure: Measure, arm: Arm) -> Figure:
    value = getattr(cost, measure.id)
    if value is not None:
        scale = readable(measure, [arm])
        return Figure(_in_unit(number(value * scale.scale), scale), order=value)
    missed = 2 * cost.hits <= cost.n and measure.by_seed(arm)
    return Figure("missed", order=float("inf")) if missed else NOTHING


def energies(found: Sequence[Group]) -> Table:
    """Each scope by itself: what was measured and what was modelled are never added up."""
    heads = [
        "arm", "setting", "scope", "gross, J", "net of idling, J", "idling, W", "integral ÷ counter",
        "carbon, g", "grid",
    ]  # fmt: skip
    table = Table("energies", "Energy and carbon of the training: means over seeds, a line per scope", heads)
    table.filters = [1, 2]
    for g, group in enumerate(found):
        for a, arm in enumerate(group.arms):
            for scope in dict.fromkeys(scope for row in arm.rows for scope in _joules(row)):
                measured = [row for row in arm.rows if row["energy"].get("scope") == scope]
                table.anchors.append(f"rows-{g}-{a}")
                table.rows.append([
                    Figure(arm.name), Figure(group.setting, PROTOCOLS[group.protocol]),
                    Figure(scope, "" if measured else "not measured"),
                    _mean([_joules(row).get(scope) for row in arm.rows]),
                    _mean([_either(row, "net_j") for row in measured]),
                    _mean([figure(row, "energy", f"idle_{at}_w") for row in measured for at in EDGES]),
                    _mean([figure(row, "energy", "ratio") for row in measured]),
                    _mean([_grams(row, scope) for row in arm.rows]),
                    _grid(arm),
                ])  # fmt: skip
    return table.without_empty()


def _grams(row: Row, scope: str) -> float | None:
    kilograms = figure(row, "carbon", "kg", scope)
    return None if kilograms is None else 1000 * kilograms


def _either(row: Row, what: str) -> float | None:
    gpu = figure(row, "energy", f"gpu_{what}")
    return figure(row, "energy", f"cpu_{what}") if gpu is None else gpu


def _joules(row: Row) -> dict[str, float]:
    """Joules by scope: the measured ones of the device that trained, then the modelled ones."""
    energy = row.get("energy", {})
    gross = _either(row, "gross_j")
    modelled: dict[str, float] = energy.get("modelled", {}).get("joules", {})
    return ({} if gross is None else {str(energy["scope"]): gross}) | modelled


def _grid(arm: Arm) -> Figure:
    carbon = next((row["carbon"] for row in arm.rows if "carbon" in row), None)
    if carbon is None:
        return NOTHING
    named = f"{carbon['region']}, {carbon['year']}: {carbon['g_per_kwh']:g} g/kWh"
    return Figure(named, f"{carbon['source']}; PUE {carbon['pue']:g}")


def budgets(found: Sequence[Group]) -> Table:
    heads = [
        "arm", "setting", "protocol", "passes over the data", "updates per weight",
        _head(MEASURES["train_flops"]), "stages", "stages at the cap", "tuning trials", "tuning, s",
    ]  # fmt: skip
    table = Table("budgets", "What each arm was given: means over seeds", heads, filters=[1, 2])
    for g, group in enumerate(found):
        for a, arm in enumerate(group.arms):
            table.anchors.append(f"rows-{g}-{a}")
            matched = group.protocol == "B" and not arm.is_baseline
            table.rows.append([
                Figure(arm.name), Figure(group.setting, PROTOCOLS[group.protocol]),
                Figure(PROTOCOLS[group.protocol], _matched_to(arm) if matched else ""),
                _mean([figure(row, "budget", "passes") for row in arm.rows]),
                _mean([figure(row, "budget", "updates_per_weight") for row in arm.rows]),
                _cost(MEASURES["train_flops"], arm, None),
                _mean([figure(row, "budget", "stages") for row in arm.rows]),
                _mean([figure(row, "budget", "capped_stages") for row in arm.rows]),
                _mean([figure(row, "tuning", "trials") for row in arm.rows]),
                _mean([figure(row, "tuning", "seconds") for row in arm.rows]),
            ])  # fmt: skip
    return table.without_empty()


def _matched_to(arm: Arm) -> str:
    return f"backpropagation took {number(arm.rows[0]['protocol']['matched_passes'])}"


def _mean(values: Sequence[float | None]) -> Figure:
    there = [value for value in values if value is not None]
    if not there:
        return NOTHING
    mean = sum(there) / len(there)
    return Figure(f"{mean:g}" if mean == int(mean) and mean < 1000 else number(mean), order=mean)


#: Rows that devices were sent, by purpose, and how a report calls them.
PURPOSES = {"train": "training", "eval": "evaluation", "calibration": "calibration"}


def devices(found: Sequence[Group]) -> Table:
    """What the devices inside physical networks are, were asked, and would have taken."""
    heads = [
        "arm", "setting", "device", "nonlinearity index",
        *(f"rows, {name}" for name in PURPOSES.values()),
        "calls sent again", "rows out of range", "hardware time, s, modelled", "energy, J, modelled",
    ]  # fmt: skip
    caption = (
        "Physical devices: means over seeds; modelled figures follow from a stated profile of the hardware"
    )
    table = Table("devices", caption, heads, filters=[1])
    for g, group in enumerate(found):
        for a, arm in enumerate(group.arms):
            if not any(row.get("physics", {}).get("devices") for row in arm.rows):
                continue
            table.anchors.append(f"rows-{g}-{a}")
            table.rows.append([
                Figure(arm.name), Figure(group.setting, PROTOCOLS[group.protocol]),
                Figure(", ".join(dict.fromkeys(d["kind"] for row in arm.rows for d in _own(row)))),
                _mean([figure(row, "physics", "nonlinearity_index") for row in arm.rows]),
                *(_mean([figure(row, "physics", "passes", name) for row in arm.rows]) for name in PURPOSES),
                _mean([float(sum(d["retries_used"] for d in _own(row))) for row in arm.rows]),
                _mean([_out_of_range(row) for row in arm.rows]),
                _mean([figure(row, "physics", "modelled", "time_s") for row in arm.rows]),
                _mean([figure(row, "physics", "modelled", "energy_j") for row in arm.rows]),
            ])  # fmt: skip
    return table.without_empty()


def _own(row: Row) -> list[Row]:
    devices: list[Row] = row["physics"]["devices"]
    return devices


def _out_of_range(row: Row) -> float:
    """Rows that were clipped into the device's range, or that a surrogate had never seen the like of."""
    return float(sum(d["clipped_rows"] + d.get("out_of_range_rows", 0) for d in _own(row)))


def comparisons(comparisons: Sequence[Comparison]) -> Table:
    heads = [
        "arm", "setting", "measure", "pairs", "difference in points, or ratio", "95 %, Student",
        "95 %, bootstrap", "p, different", "p, equivalent", "verdict", "seeds needed",
    ]  # fmt: skip
    table = Table(
        "comparisons", "Each arm against backpropagation, paired by seed; p values by Holm's method", heads
    )
    table.filters = [1, 2, 9]
    for comparison in comparisons:
        effect, measure = comparison.effect, comparison.measure
        scale = 1.0 if measure.ratio else measure.scale
        pattern = "{:.3f}" if measure.ratio else "{:+.2f}"

        def interval(
            ends: tuple[float, float] | None, scale: float = scale, pattern: str = pattern
        ) -> Figure:
            if ends is None:
                return NOTHING
            low, high = (pattern.format(end * scale) for end in ends)
            return Figure(f"[{low}, {high}]", order=ends[0])

        def p(value: float | None) -> Figure:
            return (
                NOTHING
                if value is None
                else Figure("< 0.001" if value < 0.001 else f"{value:.3f}", order=value)
            )

        needed = comparison.seeds_needed
        table.anchors.append("")
        table.rows.append([
            Figure(comparison.arm), Figure(*comparison.group.rsplit(", ", 1)), Figure(measure.label),
            Figure(str(effect.n), order=effect.n),
            Figure(pattern.format(effect.value * scale), order=effect.value), interval(effect.student),
            interval(effect.bootstrap), p(effect.p_different), p(effect.p_equivalent),
            Figure(str(effect.verdict), kind=_kind(comparison)),
            NOTHING if needed is None else Figure(f"{needed:,}", order=needed),
        ])  # fmt: skip
    return table.without_empty()
