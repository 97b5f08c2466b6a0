"""What stands on a report's page, and the page itself."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bpfree._errors import BadValue
from bpfree.bench.arms import PROTOCOLS, Arm, Group, failures, figure, groups, last_line
from bpfree.bench.measures import (
    MEASURES,
    Comparison,
    Measure,
    TargetCost,
    against_baseline,
    compare,
    energy_scope,
    short,
    target_cost,
    readable,
)
from bpfree.bench.report import charts
from bpfree.bench.results import Row
from bpfree.bench.statistics import MARGIN_DIFFERENCE, MARGIN_RATIO, MIN_SEEDS, RESAMPLES, Estimate, Verdict, estimate

#: The measures of the main table, and under which of them the ratio to the baseline stands.
COLUMNS = ("train_s", "energy_j", "train_flops", "peak_alloc", "saved_bytes")
COSTS = ("train_flops", "train_s", "energy_j")


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
        filters = [kept.index(i) for i in self.filters if i in kept and len({row[i].text for row in self.rows}) > 1]
        return Table(self.id, self.caption, [self.heads[i] for i in kept], rows, self.anchors, filters)


NOTHING = Figure("–")
Units = Mapping[str, Measure]
Looks = Mapping[str, charts.Style]


def number(value: float) -> str:
    """Three figures or more, without an exponent where that can be read."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:#.3g}".rstrip(".")


def write(rows: Sequence[Row], path: Path, targets: Sequence[float] = (), sources: Sequence[str] = ()) -> None:
    """Write the page of these rows to ``path``, whole or not at all.

    Raises:
        BadValue: If no row succeeded, or the file cannot be written.
    """
    content = html(rows, targets, sources)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(content, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise BadValue(f"{path}: the report cannot be written there: {error}") from None


def html(rows: Sequence[Row], targets: Sequence[float] = (), sources: Sequence[str] = ()) -> str:
    """The page.

    Args:
        rows: The rows of one or more results.
        targets: Validation accuracies, 0 to 1, chosen now; without any, those that the rows name.
        sources: The files of the rows, as they are to be named.

    Raises:
        BadValue: If no row succeeded.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = groups(rows)
    if not found:
        raise BadValue("no row of this result succeeded: there is nothing to report")
    named = sorted({t for row in rows for t in row.get("protocol", {}).get("targets", [])})
    goals = sorted(targets) or named
    arms = [arm for group in found for arm in group.arms]
    units = {name: readable(measure, arms) for name, measure in MEASURES.items()}
    comparisons = compare(against_baseline(found), tuple(units.values()))
    looks, numbers = charts.styles(found), itertools.count()
    env = Environment(
        loader=PackageLoader("bpfree.bench.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return env.get_template("page.html.jinja").render(
        title=", ".join(dict.fromkeys(group.setting.partition(",")[0].partition(" ")[0] for group in found)),
        facts=_facts(rows, found, sources),
        notes=_notes(rows, found),
        wins=_wins(comparisons, "loses"),
        gains=_wins(comparisons, "wins"),
        compared=bool(comparisons),
        results=_results(found, comparisons, units),
        settings=[_Setting(group, goals, units, looks, numbers) for group in found],
        memory=_memory(found, units, looks, numbers),
        targets=_targets(found, goals, units),
        post_hoc=bool(targets),
        budgets=_budgets(found, units),
        comparisons=_comparisons(comparisons),
        provenance=_provenance(found),
        failures=[(row["arm"], row["seed"], row["status"], last_line(row)) for row in failures(rows)],
        looks=looks,
        short=short,
        rules={
            "margin": 100 * MARGIN_DIFFERENCE,
            "ratio": 100 * (MARGIN_RATIO - 1),
            "seeds": MIN_SEEDS,
            "resamples": RESAMPLES,
        },
    )


class _Setting:
    """The pictures of a group."""

    def __init__(
        self, group: Group, goals: Sequence[float], units: Units, looks: Looks, numbers: Iterator[int]
    ) -> None:
        self.title, self.names = group.title, [arm.name for arm in group.arms]
        drawn = [charts.pareto(group, units[cost], looks, next(numbers)) for cost in COSTS]
        self.pareto = [chart for chart in drawn if chart is not None]
        ways = [charts.curves(group, units[cost], goals, looks, next(numbers)) for cost in COSTS]
        self.curves = [chart for chart in ways if chart is not None]


def _memory(found: Sequence[Group], units: Units, looks: Looks, numbers: Iterator[int]) -> list[charts.Chart]:
    by_data: dict[tuple[str, str], list[Group]] = {}
    for group in found:
        by_data.setdefault((group.setting.partition(",")[0], group.protocol), []).append(group)
    drawn = [
        charts.memory(several, units[measure], looks, next(numbers))
        for several in by_data.values()
        for measure in ("saved_bytes", "peak_alloc")
    ]
    return [chart for chart in drawn if chart is not None]


def _distinct(values: Iterator[Any]) -> list[str]:
    return list(dict.fromkeys(str(value) for value in values if value))


def _facts(rows: Sequence[Row], found: Sequence[Group], sources: Sequence[str]) -> list[tuple[str, str]]:
    good = [row for row in rows if row["status"] == "ok"]
    seeds = sorted({row["seed"] for row in good})
    env = [row["env"] for row in good]
    return [
        ("rows", f"{len(good)}" + (f" of {len(rows)}" if len(good) < len(rows) else "")),
        ("settings", str(len(found))),
        ("arms", str(len({arm.name for group in found for arm in group.arms}))),
        ("seeds", ", ".join(map(str, seeds))),
        ("machine", "; ".join(_distinct(e.get("gpu_name") or e.get("cpu") for e in env))),
        ("versions", "; ".join(_distinct(f"torch {e.get('torch')}, Python {e.get('python')}" for e in env))),
        ("commit", ", ".join(c[:10] for c in _distinct(row.get("git", {}).get("commit") for row in good)) or "none"),
        ("files", ", ".join(sources) or "–"),
    ]


def _notes(rows: Sequence[Row], found: Sequence[Group]) -> list[str]:
    """What a reader must know before believing a figure."""
    good = [row for row in rows if row["status"] == "ok"]
    few = [f"{arm.name} ({len(arm.rows)})" for group in found for arm in group.arms if len(arm.rows) < MIN_SEEDS]
    shared = sum(row.get("protocol", {}).get("jobs", 1) > 1 for row in good)
    resumed = sum(row.get("segments", 1) > 1 for row in good)
    dirty = sum(bool(row.get("git", {}).get("dirty")) for row in good)
    alone = [group.title for group in found if group.baseline is None]
    scopes = _distinct(energy_scope(row) for row in good)
    twins = _same_weights(good)
    notes = [
        f"Energy: {', '.join(scopes)}." if scopes else "No energy was metered, so no energy is shown.",
        f"Fewer than {MIN_SEEDS} seeds, so that no verdict is given: {', '.join(few)}." if few else "",
        f"{shared} rows come from cells that shared the machine with others: their times are rough." if shared else "",
        f"{resumed} rows were stopped and resumed: their times and energies are left out." if resumed else "",
        f"{dirty} rows come from a source tree with changes that were not committed." if dirty else "",
        f"Without backpropagation beside them: {'; '.join(alone)}." if alone else "",
        f"Different seeds ended with the same weights, so they are not replicates: {'; '.join(twins)}." if twins else "",
    ]
    return [note for note in notes if note]


def _same_weights(rows: Sequence[Row]) -> list[str]:
    by_weights: dict[str, list[Row]] = {}
    for row in rows:
        if row.get("weights_sha256"):
            by_weights.setdefault(row["weights_sha256"], []).append(row)
    return [
        f"{same[0]['arm']}, seeds {', '.join(str(row['seed']) for row in same)}"
        for same in by_weights.values()
        if len({row["seed"] for row in same}) > 1
    ]


def _wins(comparisons: Sequence[Comparison], which: str) -> list[tuple[str, list[Comparison], list[Comparison]]]:
    """By measure: what is decided, and where the one is ahead and the data do not decide."""
    found = []
    for measure in MEASURES.values():
        mine = [c for c in comparisons if c.measure.id == measure.id]
        decided = [c for c in mine if getattr(c, which)]
        undecided = [
            c
            for c in mine
            if c.effect.verdict is Verdict.INCONCLUSIVE and measure.better(c.effect) == (which == "wins")
        ]
        if mine:
            found.append((measure.label, decided, undecided))
    return found


def _results(found: Sequence[Group], comparisons: Sequence[Comparison], units: Units) -> Table:
    effects = {(c.group, c.arm, c.measure.id): c for c in comparisons}
    heads = ["arm", "setting", "level", "seeds", "test accuracy, %", "against backprop, points"]
    heads += [f"{units[name].label}, {units[name].unit}" for name in COLUMNS]
    table = Table("results", "Means over seeds with 95 % intervals; below each cost its ratio to backpropagation's", heads)
    table.filters = [1, 2]
    for g, group in enumerate(found):
        for a, arm in enumerate(group.arms):
            accuracy = estimate([100 * v for v in MEASURES["accuracy"].by_seed(arm).values()])
            against = effects.get((group.title, arm.name, "accuracy"))
            costs = [_cost(units[name], arm, effects.get((group.title, arm.name, name))) for name in COLUMNS]
            table.anchors.append(f"rows-{g}-{a}")
            table.rows.append([
                Figure(arm.name, "the baseline" if arm is group.baseline else ""),
                Figure(group.setting, PROTOCOLS[group.protocol]),
                Figure(str(arm.rows[0]["locality"])),
                Figure(str(len(arm.rows)), order=len(arm.rows)),
                Figure(_accuracy(accuracy), order=accuracy.mean),
                NOTHING if against is None else Figure(short(against), against.says, against.effect.value, _kind(against)),
                *costs,
            ])  # fmt: skip
    return table.without_empty()


def _accuracy(found: Estimate) -> str:
    return f"{found.mean:.2f}" + ("" if found.half is None else f" ± {found.half:.2f}")


def _plus_minus(mean: float, half: float | None) -> str:
    """A mean with as many digits as its interval gives sense to: two of the half width."""
    if half is None or half <= 1e-9 * abs(mean):
        return number(mean)
    digits = max(0, 1 - math.floor(math.log10(half)))
    return f"{mean:,.{digits}f} ± {half:,.{digits}f}"


def _cost(measure: Measure, arm: Arm, comparison: Comparison | None) -> Figure:
    values = [value * measure.scale for value in measure.by_seed(arm).values()]
    if not values:
        return NOTHING
    found = estimate(values)
    note = "" if comparison is None else short(comparison)
    half = None if measure.counted else found.half
    return Figure(_plus_minus(found.mean, half), note, found.mean, "" if comparison is None else _kind(comparison))


def _kind(comparison: Comparison) -> str:
    return "better" if comparison.wins else "worse" if comparison.loses else ""


def _targets(found: Sequence[Group], goals: Sequence[float], units: Units) -> Table:
    heads = ["arm", "setting", "target, %", "seeds that reached it", *(f"{units[c].label}, {units[c].unit}" for c in COSTS)]
    table = Table("targets", "Median over seeds of the cost to a target of validation accuracy", heads, filters=[1, 2])
    for g, group in enumerate(found):
        for (a, arm), goal in itertools.product(enumerate(group.arms), goals):
            cost = target_cost(arm, goal)
            table.anchors.append(f"rows-{g}-{a}")
            table.rows.append([
                Figure(arm.name), Figure(group.setting, PROTOCOLS[group.protocol]), Figure(f"{100 * goal:g}", order=goal),
                Figure(f"{cost.hits} of {cost.n}", order=cost.hits / cost.n),
                *(_median(cost, units[name], arm) for name in COSTS),
            ])  # fmt: skip
    return table.without_empty()


def _median(cost: TargetCost, measure: Measure, arm: Arm) -> Figure:
    value = getattr(cost, measure.id)
    if value is not None:
        return Figure(number(value * measure.scale), order=value)
    missed = 2 * cost.hits <= cost.n and measure.by_seed(arm)
    return Figure("missed", order=float("inf")) if missed else NOTHING


def _budgets(found: Sequence[Group], units: Units) -> Table:
    spent = units["train_flops"]
    heads = [
        "arm", "setting", "protocol", "passes over the data", "updates per weight", f"{spent.label}, {spent.unit}",
        "stages",
        "stages at the cap", "tuning trials", "tuning, s",
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
                _mean([n * spent.scale for n in spent.by_seed(arm).values()]),
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


def _comparisons(comparisons: Sequence[Comparison]) -> Table:
    heads = [
        "arm", "setting", "measure", "pairs", "difference in points, or ratio", "95 %, Student", "95 %, bootstrap",
        "p, different", "p, equivalent", "verdict", "seeds needed",
    ]  # fmt: skip
    table = Table("comparisons", "Each arm against backpropagation, paired by seed; p values by Holm's method", heads)
    table.filters = [1, 2, 9]
    for comparison in comparisons:
        effect, measure = comparison.effect, comparison.measure
        scale = 1.0 if measure.ratio else measure.scale
        pattern = "{:.3f}" if measure.ratio else "{:+.2f}"

        def interval(ends: tuple[float, float] | None, scale: float = scale, pattern: str = pattern) -> Figure:
            if ends is None:
                return NOTHING
            low, high = (pattern.format(end * scale) for end in ends)
            return Figure(f"[{low}, {high}]", order=ends[0])

        def p(value: float | None) -> Figure:
            return NOTHING if value is None else Figure("< 0.001" if value < 0.001 else f"{value:.3f}", order=value)

        needed = comparison.seeds_needed
        table.anchors.append("")
        table.rows.append([
            Figure(comparison.arm), Figure(*comparison.group.rsplit(", ", 1)), Figure(measure.label), Figure(str(effect.n), order=effect.n),
            Figure(pattern.format(effect.value * scale), order=effect.value), interval(effect.student),
            interval(effect.bootstrap), p(effect.p_different), p(effect.p_equivalent),
            Figure(str(effect.verdict), kind=_kind(comparison)),
            NOTHING if needed is None else Figure(f"{needed:,}", order=needed),
        ])  # fmt: skip
    return table.without_empty()


def _provenance(found: Sequence[Group]) -> list[tuple[str, str, str, list[dict[str, Any]]]]:
    """For each arm: anchor, name, setting, and where each of its rows comes from."""
    return [
        (f"rows-{g}-{a}", arm.name, group.title, [_origin(row) for row in sorted(arm.rows, key=lambda r: int(r["seed"]))])
        for g, group in enumerate(found)
        for a, arm in enumerate(group.arms)
    ]


def _origin(row: Row) -> dict[str, Any]:
    env, git = row["env"], row.get("git", {})
    return {
        "seed": row["seed"],
        "row": row["cell_id"],
        "accuracy": f"{100 * row['metrics']['test_accuracy']:.2f}",
        "commit": git.get("commit", "–")[:10] + (" + changes" if git.get("dirty") else ""),
        "source": env.get("source", "–"),
        "machine": ", ".join(filter(None, [env.get("gpu_name"), env.get("cpu"), f"{env.get('threads', '?')} thread(s)"])),
        "versions": f"bpfree {env.get('bpfree', '?')}, torch {env.get('torch', '?')}, Python {env.get('python', '?')}",
        "started": row.get("protocol", {}).get("started", "–"),
        "segments": row.get("segments", 1),
    }
