"""The page of a report."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bpfree._errors import BadValue
from bpfree.bench.arms import Group, failures, groups, last_line
from bpfree.bench.measures import (
    COSTS,
    Comparison,
    against_baseline,
    compare,
    left_out,
    mixed,
    readable,
    short,
)
from bpfree.bench.metric import common
from bpfree.bench.report import charts, drawn, tables
from bpfree.bench.report.drawn import joules_by_scope
from bpfree.bench.report.provenance import provenance
from bpfree.bench.report.searches import Search, searched
from bpfree.bench.results import Row
from bpfree.bench.statistics import (
    MARGIN_DIFFERENCE,
    MARGIN_RATIO,
    MIN_SEEDS,
    RESAMPLES,
    Verdict,
)
from bpfree.bench.targets import CURVE_COSTS
from bpfree.bench.terminal import visible
from bpfree.bench.weak_blocks import weak_blocks

Looks = Mapping[str, charts.Style]


def write(
    rows: Sequence[Row],
    path: Path,
    targets: Sequence[float] = (),
    sources: Sequence[str] = (),
    searches: Sequence[Search] = (),
) -> None:
    """Write the page of these rows to ``path`` atomically.

    Raises:
        BadValue: If no row succeeded, or the file cannot be written.
    """
    content = html(rows, targets, sources, searches)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(content, encoding="utf-8", errors="backslashreplace")
        partial.replace(path)
    except OSError as error:
        raise BadValue(f"{path}: the report cannot be written there: {error}") from None


def html(
    rows: Sequence[Row],
    targets: Sequence[float] = (),
    sources: Sequence[str] = (),
    searches: Sequence[Search] = (),
) -> str:
    """The page.

    Args:
        rows: The rows of one or more results.
        targets: Values of the metric on validation data, chosen now; by default those of the rows.
        sources: Names of the folders of the rows.
        searches: The searches that gave the arms their settings.

    Raises:
        BadValue: If no row succeeded.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    grouped = groups(rows)
    if not grouped:
        raise BadValue("no row of this result succeeded: nothing can be reported")
    named = sorted({t for row in rows for t in row.get("protocol", {}).get("targets", [])})
    goals = sorted(targets) or named
    comparisons = compare(against_baseline(grouped))
    looks, numbers = charts.styles(grouped), itertools.count()
    env = Environment(
        loader=PackageLoader("bpfree.bench.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return env.get_template("page.html.jinja").render(
        title=", ".join(dict.fromkeys(re.split("[ ,]", group.setting)[0] for group in grouped)),
        facts=_facts(rows, grouped, sources),
        notes=_notes(rows, grouped),
        wins=_wins(comparisons, "loses"),
        gains=_wins(comparisons, "wins"),
        compared=bool(comparisons),
        results=tables.results(grouped, comparisons),
        settings=[_Setting(group, goals, looks, numbers) for group in grouped],
        memory=_memory(grouped, looks, numbers),
        targets=tables.targets(grouped, goals),
        post_hoc=bool(targets),
        energies=drawn.energies(grouped),
        budgets=tables.budgets(grouped),
        devices=drawn.devices(grouped),
        searched=searched(searches),
        plots_of_searches=[(search.name, search.plots) for search in searches if search.plots],
        comparisons=tables.comparisons(comparisons),
        provenance=provenance(grouped),
        failures=[
            (visible(str(row.get("arm"))), row["seed"], row["status"], last_line(row))
            for row in failures(rows)
        ],
        metric=metric.title if (metric := common(group.metric for group in grouped)) else "Metric",
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
    """The charts of a group."""

    def __init__(self, group: Group, goals: Sequence[float], looks: Looks, numbers: Iterator[int]) -> None:
        self.title, self.names = group.title, [arm.name for arm in group.arms]
        costs = [readable(COSTS[cost], group.arms) for cost in CURVE_COSTS]
        fronts = [charts.pareto(group, cost, looks, next(numbers)) for cost in costs]
        self.pareto = [chart for chart in fronts if chart is not None]
        curves = [charts.curves(group, cost, goals, looks, next(numbers)) for cost in costs]
        self.curves = [chart for chart in curves if chart is not None]


def _memory(grouped: Sequence[Group], looks: Looks, numbers: Iterator[int]) -> list[charts.Chart]:
    by_data: dict[tuple[str, str], list[Group]] = {}
    for group in grouped:
        by_data.setdefault((group.setting.partition(",")[0], group.protocol), []).append(group)
    drawn_charts = [
        charts.memory(
            several, readable(COSTS[measure], [a for g in several for a in g.arms]), looks, next(numbers)
        )
        for several in by_data.values()
        for measure in ("saved_bytes", "peak_alloc")
    ]
    return [chart for chart in drawn_charts if chart is not None]


def _distinct(values: Iterator[object]) -> list[str]:
    return list(dict.fromkeys(str(value) for value in values if value))


def _facts(rows: Sequence[Row], grouped: Sequence[Group], sources: Sequence[str]) -> list[tuple[str, str]]:
    good = [row for row in rows if row["status"] == "ok"]
    seeds = sorted({row["seed"] for row in good})
    env = [row["env"] for row in good]
    return [
        ("rows", f"{len(good)}" + (f" of {len(rows)}" if len(good) < len(rows) else "")),
        ("settings", str(len(grouped))),
        ("arms", str(len({arm.name for group in grouped for arm in group.arms}))),
        ("seeds", ", ".join(map(str, seeds))),
        ("machine", "; ".join(_distinct(e.get("gpu_name") or e.get("cpu") for e in env))),
        ("versions", "; ".join(_distinct(f"torch {e.get('torch')}, Python {e.get('python')}" for e in env))),
        (
            "commit",
            ", ".join(c[:10] for c in _distinct(row.get("git", {}).get("commit") for row in good)) or "none",
        ),
        ("files", ", ".join(map(visible, sources)) or "–"),
    ]


def _notes(rows: Sequence[Row], grouped: Sequence[Group]) -> list[str]:
    """Notes on the limits of the results."""
    good = [row for row in rows if row["status"] == "ok"]
    few_seeds = _distinct(
        f"{arm.name} ({len(arm.rows)})" for g in grouped for arm in g.arms if len(arm.rows) < MIN_SEEDS
    )
    shared = sum(row.get("protocol", {}).get("jobs", 1) > 1 for row in good)
    resumed = sum(row.get("segments", 1) > 1 for row in good)
    dirty = sum(bool(row.get("git", {}).get("dirty")) for row in good)
    alone = [group.title for group in grouped if group.baseline is None]
    duplicates = _same_weights(good)
    weak = [text for g in grouped for arm in g.arms if (text := weak_blocks(arm))]
    notes = [
        *left_out(against_baseline(grouped)),
        *mixed(grouped),
        *_other_fits(grouped),
        _scopes(good),
        f"Fewer than {MIN_SEEDS} seeds, so no verdict is given: {', '.join(few_seeds)}." if few_seeds else "",
        *_energy_notes(good),
        f"{shared} rows come from cells that shared the machine with others: their times are rough."
        if shared
        else "",
        f"{resumed} rows were stopped and resumed: their times and energies are left out." if resumed else "",
        f"{dirty} rows come from a source tree with changes that were not committed." if dirty else "",
        f"Without backpropagation beside them: {'; '.join(alone)}." if alone else "",
        f"Different seeds ended with the same weights, so they are not replicates: {'; '.join(duplicates)}."
        if duplicates
        else "",
        *(f"Single blocks, {text}." for text in dict.fromkeys(weak)),
    ]
    return [note for note in notes if note]


def _scopes(rows: Sequence[Row]) -> str:
    """A note on the scopes of the energies."""
    scopes = _distinct(scope for row in rows for scope in joules_by_scope(row))
    if not scopes:
        return "No energy was metered, so no energy is shown."
    measured = any(not scope.startswith("modelled") for scope in scopes)
    return f"Energy: {', '.join(scopes)}." + ("" if measured else " It is modeled, not measured.")


def _other_fits(grouped: Sequence[Group]) -> Iterator[str]:
    """Notes on arms whose batch size or number of epochs differs from backpropagation's."""
    for title, arm, other in against_baseline(grouped):
        ours, theirs = (one.rows[0]["config"]["fit"] for one in (arm, other))
        differences = [
            f"{key} {ours.get(key)} against {theirs.get(key)}"
            for key in ("epochs", "batch_size")
            if ours.get(key) != theirs.get(key)
        ]
        if differences:
            yield f"{title}: {arm.name} was fitted with {', '.join(differences)} of {other.name}."


def _energy_notes(rows: Sequence[Row]) -> Iterator[str]:
    """Notes on energies that could not be measured."""
    reasons: dict[str, int] = {}
    for row in rows:
        energy = row.get("energy", {})
        tainted = {name: "; ".join(reading["tainted"]) for name, reading in energy.get("tainted", {}).items()}
        for name, reason in (energy.get("absent", {}) | tainted).items():
            reasons[f"{name}: {reason}"] = reasons.get(f"{name}: {reason}", 0) + 1
    for reason, count in reasons.items():
        yield f"No energy for {count} of {len(rows)} rows by the {reason}."


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


def _wins(
    comparisons: Sequence[Comparison], which: str
) -> list[tuple[str, list[Comparison], list[Comparison]]]:
    """By measure: the decided comparisons, and those in which one arm is ahead without a verdict."""
    result = []
    for measure in {c.measure.id: c.measure for c in comparisons}.values():
        of_measure = [c for c in comparisons if c.measure.id == measure.id]
        decided = [c for c in of_measure if getattr(c, which)]
        undecided = [
            c
            for c in of_measure
            if c.effect.verdict is Verdict.INCONCLUSIVE and measure.better(c.effect) == (which == "wins")
        ]
        result.append((measure.label, decided, undecided))
    return result
