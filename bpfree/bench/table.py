"""The tables of rows in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from bpfree.bench.arms import Arm, alone, failures, groups, last_line
from bpfree.bench.measures import COSTS, Comparison, against_baseline, compare, left_out, mixed, short
from bpfree.bench.metric import RowMetric
from bpfree.bench.results import Row
from bpfree.bench.statistics import Estimate, Verdict, estimate
from bpfree.bench.terminal import visible
from bpfree.bench.weak_blocks import weak_blocks

#: The columns. The arm, its metric on test data and the comparison come first where not all fit.
NAME, TEST, EFFECT, LEVEL, READOUTS = "arm", "test", "effect", "level", "readouts"
COLUMNS = (
    NAME,
    LEVEL,
    "seeds",
    TEST,
    EFFECT,
    "device passes",
    "train s",
    "time ÷ BP",
    "FLOPs ÷ BP",
    "saved ÷ BP",
    READOUTS,
)
FIRST = (NAME, TEST, EFFECT)

#: Columns of text.
LEFT = (NAME, LEVEL, READOUTS)

#: Marks of the verdicts.
MARKS = {Verdict.DIFFERENT: "≠", Verdict.NEGLIGIBLE: "≈", Verdict.EQUIVALENT: "=", Verdict.INCONCLUSIVE: "?"}
LEGEND = (
    "≠ different, ≈ different by less than the margin, = equivalent, ? not decided by these seeds (the "
    "report has the number needed); FLOPs: of the whole training; saved: bytes kept for the backward pass"
)


def heads(metric: RowMetric) -> dict[str, str]:
    """The headings of the columns."""
    return {name: name for name in COLUMNS} | {
        TEST: metric.head(f"test {metric.label}", " "),
        EFFECT: "– backprop, points" if metric.share else "÷ backprop",
        READOUTS: metric.head("other readouts", " "),
    }


def show(rows: Sequence[Row], console: Console) -> None:
    """Print a table for each data set and net, the arms that backpropagation is better than, and failures.

    Columns that do not fit the terminal follow in further tables.
    """
    grouped = groups(rows)
    pairs = against_baseline(grouped)
    effects = {(c.group, c.arm, c.measure.id): c for c in compare(pairs)}
    for group in grouped:
        of_group = {(name, m): c for (title, name, m), c in effects.items() if title == group.title}
        lines = [
            _line(arm, {m: c for (name, m), c in of_group.items() if name == arm.name}) for arm in group.arms
        ]
        _print(group.title, heads(group.metric), lines, console)
        if group.baseline is not None and len(group.arms) > 1:
            of_metric = [c for (_, m), c in of_group.items() if m == group.metric.name]
            console.print(Text(_where_baseline_wins(of_metric, group.metric)), soft_wrap=True)
        for text in filter(None, map(weak_blocks, group.arms)):
            console.print(Text(f"single blocks, {visible(text)}"), soft_wrap=True)
    if grouped:
        console.print(Text(LEGEND))
    for note in [*left_out(pairs), *mixed(grouped)]:
        console.print(Text(f"note: {note}"), soft_wrap=True)
    for row in failures(rows):
        text = f" {visible(str(row.get('arm')))}, seed {row['seed']}: {last_line(row)}"
        console.print(Text.assemble((visible(row["status"]), "red"), text), soft_wrap=True)


def _print(
    title: str, heads: Mapping[str, str], lines: Sequence[Mapping[str, str]], console: Console
) -> None:
    """Print the lines as a table, or as several with the names of the arms if one is too wide."""
    remaining = [name for name in COLUMNS if any(line[name] for line in lines)]
    while remaining:
        # The first columns are shown even if they do not fit: long names take several lines.
        shown = [name for name in remaining if name in FIRST] or ["arm", remaining[0]]
        for name in remaining:
            if (
                name not in shown
                and _width(_table("", [*shown, name], heads, lines), console) <= console.width
            ):
                shown.append(name)
        console.print(_table(title, [name for name in COLUMNS if name in shown], heads, lines))
        remaining = [name for name in remaining if name not in shown]
        title = ""


def _table(
    title: str, names: Sequence[str], heads: Mapping[str, str], lines: Sequence[Mapping[str, str]]
) -> Table:
    table = Table(title=Text(title) if title else None, title_justify="left")
    for name in names:
        justify: Literal["left", "right"] = "left" if name in LEFT else "right"
        # Text is wrapped first, and numbers only where the terminal is narrower; nothing is cut.
        widest = max(
            cell_len(part)
            for cell in [heads[name], *(line[name] for line in lines)]
            for part in cell.split("\n")
        )
        table.add_column(
            heads[name], justify=justify, overflow="fold", width=None if name in LEFT else widest
        )
    for line in lines:
        table.add_row(*(Text(line[name], overflow="fold") for name in names))
    return table


def _width(table: Table, console: Console) -> int:
    """Width of the table in columns of the terminal without wrapped lines."""
    return Measurement.get(console, console.options.update(max_width=10_000), table).maximum


def _line(arm: Arm, effects: Mapping[str, Comparison]) -> dict[str, str]:
    """The text of each of `COLUMNS`; empty where it does not apply to the arm."""
    first = arm.rows[0]
    others = [name for name in first["metrics"]["readouts"] if name != first["method"]["readout"]]
    readouts = [f"{visible(name)} {_value(arm, 'metrics', 'readouts', name)}" for name in others]
    if of_blocks := alone(arm):
        readouts.append(f"blocks alone {of_blocks}")
    seconds = COSTS["train_s"].averaged(arm)
    rows_sent = _mean(arm, "physics", "passes", "train")
    ratios = (_ratio(effects.get(m)) for m in ("train_s", "train_flops", "saved_bytes"))
    cells = [
        arm.name,
        visible(str(first["locality"])),
        str(len(arm.rows)),
        _value(arm, "metrics", f"test_{arm.metric.name}"),
        _effect(effects.get(arm.metric.name)),
        f"{rows_sent.mean:,.0f}" if rows_sent else "–" if "physics" in first else "",
        f"{estimate(seconds).mean:.2f}" if seconds else "–",
        *ratios,
        "\n".join(readouts),
    ]
    return dict(zip(COLUMNS, cells, strict=True))


def _mean(arm: Arm, *path: str) -> Estimate | None:
    values = list(arm.by_seed(*path).values())
    return estimate(values) if values else None


def _value(arm: Arm, *path: str) -> str:
    """A value of the metric: the mean over seeds with its interval."""
    values = [arm.metric.scale * value for value in arm.by_seed(*path).values()]
    return arm.metric.spread(estimate(values)) if values else "–"


def _effect(comparison: Comparison | None) -> str:
    """The comparison with the baseline, with its interval and the mark of its verdict."""
    return "–" if comparison is None else f"{short(comparison)} {MARKS[comparison.effect.verdict]}"


def _ratio(comparison: Comparison | None) -> str:
    return "–" if comparison is None else f"{comparison.effect.value:.2f}"


def _where_baseline_wins(comparisons: Sequence[Comparison], metric: RowMetric) -> str:
    """The arms that backpropagation is better than, and those of which it is ahead, undecided."""
    if not comparisons:
        return "Backpropagation is not compared with any of them: no seed in common"
    behind = [c.arm for c in comparisons if c.loses]
    open_ = [
        c.arm for c in comparisons if c.measure.worse(c.effect) and c.effect.verdict is Verdict.INCONCLUSIVE
    ]
    what = "is more accurate than" if metric.name == "accuracy" else f"has a better {metric.label} than"
    text = f"Backpropagation {what}: {', '.join(behind) or 'none of them'}"
    return f"{text}; ahead, and not decided, of: {', '.join(open_)}" if open_ else text
