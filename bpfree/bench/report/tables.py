"""The tables of a report: results, costs to a target, budgets, comparisons."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from bpfree.bench.arms import PROTOCOLS, Arm, Group, alone
from bpfree.bench.measures import (
    COSTS,
    Comparison,
    Measure,
    against_baseline,
    compare,
    on_test,
    readable,
    short,
)
from bpfree.bench.metric import RowMetric, common
from bpfree.bench.numbers import number
from bpfree.bench.report.figures import (
    NOTHING,
    Figure,
    Table,
    head,
    in_unit,
    kind,
    mean,
    of_measure,
)
from bpfree.bench.results import figure
from bpfree.bench.statistics import estimate
from bpfree.bench.targets import CURVE_COSTS, TargetCost, at_target, target_cost

#: The costs of the main table.
COLUMNS = ("train_s", "train_cpu_s", "energy_j", "train_flops", "peak_alloc", "saved_bytes")


def results(groups: Sequence[Group], comparisons: Sequence[Comparison]) -> Table:
    effects = {(c.group, c.arm, c.measure.id): c for c in comparisons}
    metric = common(group.metric for group in groups)
    heads = [
        "arm", "setting", "level", "seeds",
        "test metric" if metric is None else metric.head(f"test {metric.label}"),
        "against backprop, points" if metric is None or metric.share else "against backprop",
        "blocks alone" if metric is None else metric.head("blocks alone"),
    ]  # fmt: skip
    heads += [head(COSTS[name]) for name in COLUMNS]
    caption = "Means over seeds with 95 % intervals; below each cost its ratio to backpropagation's"
    table = Table("results", caption, heads, filters=[1, 2])
    for g, group in enumerate(groups):
        for a, arm in enumerate(group.arms):
            against = effects.get((group.title, arm.name, arm.metric.name))
            costs = [
                of_measure(COSTS[name], arm, effects.get((group.title, arm.name, name))) for name in COLUMNS
            ]
            table.anchors.append(f"rows-{g}-{a}")
            table.rows.append([
                Figure(arm.name, "the baseline" if arm is group.baseline else ""),
                Figure(group.setting, PROTOCOLS[group.protocol]),
                Figure(str(arm.rows[0]["locality"])),
                Figure(str(len(arm.rows)), order=len(arm.rows)),
                _of_metric(arm, _named(arm, metric)),
                NOTHING if against is None else _against(against),
                Figure(alone(arm) or "–"),
                *costs,
            ])  # fmt: skip
    return table.without_empty()


def _named(arm: Arm, metric: RowMetric | None) -> str:
    """The metric of an arm, where the heading does not name it."""
    return "" if metric else arm.metric.head(arm.metric.label)


def _of_metric(arm: Arm, note: str) -> Figure:
    """The metric of an arm on test data."""
    values = [arm.metric.scale * v for v in on_test(arm.metric).by_seed(arm).values()]
    if not values:
        return NOTHING
    over_seeds = estimate(values)
    return Figure(arm.metric.spread(over_seeds), note, order=over_seeds.mean)


def _against(comparison: Comparison) -> Figure:
    return Figure(short(comparison), comparison.text, comparison.effect.value, kind(comparison))


def targets(groups: Sequence[Group], goals: Sequence[float]) -> Table:
    metric = common(group.metric for group in groups)
    heads = [
        "arm",
        "setting",
        "target" if metric is None else metric.head("target"),
        "seeds that reached it",
        *(head(COSTS[name]) for name in CURVE_COSTS),
    ]
    of_what = metric.label if metric else "metrics"
    caption = (
        f"Median over seeds of the cost to a target of validation {of_what}; below it, where no seed missed, "
        "the ratio to backpropagation's, paired by seed, with its 95 % interval"
    )
    table = Table("targets", caption, heads, filters=[1, 2])
    measures = [at_target(goal, name) for goal in goals for name in CURVE_COSTS]
    effects = {(c.group, c.arm, c.measure.id): c for c in compare(against_baseline(groups), measures)}
    for g, group in enumerate(groups):
        for (a, arm), goal in itertools.product(enumerate(group.arms), goals):
            cost = target_cost(arm, goal)
            against = {m: effects.get((group.title, arm.name, f"{m} to {goal:g}")) for m in CURVE_COSTS}
            table.anchors.append(f"rows-{g}-{a}")
            table.rows.append([
                Figure(arm.name), Figure(group.setting, PROTOCOLS[group.protocol]),
                Figure(f"{arm.metric.scale * goal:g}", _named(arm, metric), goal),
                Figure(f"{cost.hits} of {cost.n}", order=cost.hits / cost.n),
                *(_median(cost, COSTS[name], arm, against[name]) for name in CURVE_COSTS),
            ])  # fmt: skip
    return table.without_empty()


def _median(cost: TargetCost, measure: Measure, arm: Arm, comparison: Comparison | None) -> Figure:
    value = getattr(cost, measure.id)
    if value is not None:
        scale = readable(measure, [arm])
        text = in_unit(number(value * scale.scale), scale)
        # Pairs exclude seeds that missed the target, so their ratio would ignore them.
        if comparison is None or comparison.effect.n < cost.n:
            return Figure(text, order=value)
        return Figure(text, short(comparison), value, kind(comparison))
    missed = 2 * cost.hits <= cost.n and measure.by_seed(arm)
    return Figure("missed", order=float("inf")) if missed else NOTHING


def budgets(groups: Sequence[Group]) -> Table:
    heads = [
        "arm", "setting", "protocol", "passes over the data", "updates per weight",
        head(COSTS["train_flops"]), "stages", "stages at the cap", "tuning trials", "tuning, s",
    ]  # fmt: skip
    table = Table("budgets", "The budget of each arm: means over seeds", heads, filters=[1, 2])
    for g, group in enumerate(groups):
        for a, arm in enumerate(group.arms):
            table.anchors.append(f"rows-{g}-{a}")
            matched = group.protocol == "B" and not arm.is_baseline
            table.rows.append([
                Figure(arm.name), Figure(group.setting, PROTOCOLS[group.protocol]),
                Figure(PROTOCOLS[group.protocol], _matched_to(arm) if matched else ""),
                mean([figure(row, "budget", "passes") for row in arm.rows]),
                mean([figure(row, "budget", "updates_per_weight") for row in arm.rows]),
                of_measure(COSTS["train_flops"], arm, None),
                mean([figure(row, "budget", "stages") for row in arm.rows]),
                mean([figure(row, "budget", "capped_stages") for row in arm.rows]),
                mean([figure(row, "tuning", "trials") for row in arm.rows]),
                mean([figure(row, "tuning", "seconds") for row in arm.rows]),
            ])  # fmt: skip
    return table.without_empty()


def _matched_to(arm: Arm) -> str:
    return f"backpropagation took {number(arm.rows[0]['protocol']['matched_passes'])}"


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
            Figure(str(effect.verdict), kind=kind(comparison)),
            NOTHING if needed is None else Figure(f"{needed:,}", order=needed),
        ])  # fmt: skip
    return table.without_empty()
