"""What stands on a report's page, and the page itself."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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
    """Write the page of these rows to ``path``, whole or not at all.

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
        targets: Values of the metric on validation data, chosen now; without any, those that the rows name.
        sources: The files of the rows, as they are to be named.
        searches: What gave the arms their settings.

    Raises:
        BadValue: If no row succeeded.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = groups(rows)
    if not found:
        raise BadValue("no row of this result succeeded: there is nothing to report")
    named = sorted({t for row in rows for t in row.get("protocol", {}).get("targets", [])})
    goals = sorted(targets) or named
    comparisons = compare(against_baseline(found))
    looks, numbers = charts.styles(found), itertools.count()
    env = Environment(
        loader=PackageLoader("bpfree.bench.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return env.get_template("page.html.jinja").render(
        title=", ".join(dict.fromkeys(group.setting.partition(",")[0].partition(" ")[0] for group in found)),
        facts=_facts(rows, found, sources),
        notes=_notes(rows, found),
        wins=_wins(comparisons, "loses"),
        gains=_wins(comparisons, "wins"),
        compared=bool(comparisons),
        results=tables.results(found, comparisons),
        settings=[_Setting(group, goals, looks, numbers) for group in found],
        memory=_memory(found, looks, numbers),
        targets=tables.targets(found, goals),
        post_hoc=bool(targets),
        energies=drawn.energies(found),
        budgets=tables.budgets(found),
        devices=drawn.devices(found),
        searched=searched(searches),
        pictures_of_searches=[(search.name, search.pictures) for search in searches if search.pictures],
        comparisons=tables.comparisons(comparisons),
        provenance=provenance(found),
        failures=[
            (visible(str(row.get("arm"))), row["seed"], row["status"], last_line(row))
            for row in failures(rows)
        ],
        metric=metric.title if (metric := common(group.metric for group in found)) else "Metric",
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

    def __init__(self, group: Group, goals: Sequence[float], looks: Looks, numbers: Iterator[int]) -> None:
        self.title, self.names = group.title, [arm.name for arm in group.arms]
        costs = [readable(COSTS[cost], group.arms) for cost in CURVE_COSTS]
        drawn = [charts.pareto(group, cost, looks, next(numbers)) for cost in costs]
        self.pareto = [chart for chart in drawn if chart is not None]
        ways = [charts.curves(group, cost, goals, looks, next(numbers)) for cost in costs]
        self.curves = [chart for chart in ways if chart is not None]


def _memory(found: Sequence[Group], looks: Looks, numbers: Iterator[int]) -> list[charts.Chart]:
    by_data: dict[tuple[str, str], list[Group]] = {}
    for group in found:
        by_data.setdefault((group.setting.partition(",")[0], group.protocol), []).append(group)
    drawn = [
        charts.memory(
            several, readable(COSTS[measure], [a for g in several for a in g.arms]), looks, next(numbers)
        )
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
        (
            "commit",
            ", ".join(c[:10] for c in _distinct(row.get("git", {}).get("commit") for row in good)) or "none",
        ),
        ("files", ", ".join(map(visible, sources)) or "–"),
    ]


def _notes(rows: Sequence[Row], found: Sequence[Group]) -> list[str]:
    """What a reader must know before believing a figure."""
    good = [row for row in rows if row["status"] == "ok"]
    few = _distinct(
        f"{arm.name} ({len(arm.rows)})" for g in found for arm in g.arms if len(arm.rows) < MIN_SEEDS
    )
    shared = sum(row.get("protocol", {}).get("jobs", 1) > 1 for row in good)
    resumed = sum(row.get("segments", 1) > 1 for row in good)
    dirty = sum(bool(row.get("git", {}).get("dirty")) for row in good)
    alone = [group.title for group in found if group.baseline is None]
    twins = _same_weights(good)
    weak = [text for g in found for arm in g.arms if (text := weak_blocks(arm))]
    notes = [
        *left_out(against_baseline(found)),
        *mixed(found),
        *_other_fits(found),
        _scopes(good),
        f"Fewer than {MIN_SEEDS} seeds, so that no verdict is given: {', '.join(few)}." if few else "",
        *_energy_notes(good),
        f"{shared} rows come from cells that shared the machine with others: their times are rough."
        if shared
        else "",
        f"{resumed} rows were stopped and resumed: their times and energies are left out." if resumed else "",
        f"{dirty} rows come from a source tree with changes that were not committed." if dirty else "",
        f"Without backpropagation beside them: {'; '.join(alone)}." if alone else "",
        f"Different seeds ended with the same weights, so they are not replicates: {'; '.join(twins)}."
        if twins
        else "",
        *(f"Single blocks, {text}." for text in dict.fromkeys(weak)),
    ]
    return [note for note in notes if note]


def _scopes(rows: Sequence[Row]) -> str:
    """Which energies are shown."""
    scopes = _distinct(scope for row in rows for scope in joules_by_scope(row))
    if not scopes:
        return "No energy was metered, so no energy is shown."
    measured = any(not scope.startswith("modelled") for scope in scopes)
    return f"Energy: {', '.join(scopes)}." + ("" if measured else " It is modelled, none of it was measured.")


def _other_fits(found: Sequence[Group]) -> Iterator[str]:
    """Which arms were trained in other batches, or for other numbers of epochs, than backpropagation."""
    for title, arm, other in against_baseline(found):
        ours, theirs = (one.rows[0]["config"]["fit"] for one in (arm, other))
        own = [
            f"{key} {ours.get(key)} against {theirs.get(key)}"
            for key in ("epochs", "batch_size")
            if ours.get(key) != theirs.get(key)
        ]
        if own:
            yield f"{title}: {arm.name} was fitted with {', '.join(own)} of {other.name}."


def _energy_notes(rows: Sequence[Row]) -> Iterator[str]:
    """Why energies that were asked for are not there."""
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
    """By measure: what is decided, and where the one is ahead and the data do not decide."""
    found = []
    for measure in {c.measure.id: c.measure for c in comparisons}.values():
        mine = [c for c in comparisons if c.measure.id == measure.id]
        decided = [c for c in mine if getattr(c, which)]
        undecided = [
            c
            for c in mine
            if c.effect.verdict is Verdict.INCONCLUSIVE and measure.better(c.effect) == (which == "wins")
        ]
        found.append((measure.label, decided, undecided))
    return found
