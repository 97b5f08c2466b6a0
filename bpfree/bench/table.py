"""The table of a set of rows, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from bpfree.bench.arms import Arm, alone, failures, groups, last_line
from bpfree.bench.measures import Comparison, against_baseline, compare, short
from bpfree.bench.results import Row
from bpfree.bench.statistics import Estimate, Verdict, estimate
from bpfree.bench.weak_blocks import weak_blocks

COLUMNS = (
    "arm",
    "level",
    "seeds",
    "test accuracy %",
    "– backprop, points",
    "train s",
    "time ÷ BP",
    "FLOPs ÷ BP",
    "saved ÷ BP",
    "other readouts %",
)

#: How the verdict on a difference is marked.
MARKS = {Verdict.DIFFERENT: "≠", Verdict.NEGLIGIBLE: "≈", Verdict.EQUIVALENT: "=", Verdict.INCONCLUSIVE: "?"}
LEGEND = (
    "≠ different, ≈ different by less than the margin, = equivalent, ? not decided by these seeds (the "
    "report says how many would do); FLOPs: of the whole training; saved: bytes kept for the backward pass"
)


def percent(figure: Estimate | None) -> str:
    """An accuracy in percent with its interval."""
    if figure is None:
        return "–"
    text = f"{100 * figure.mean:.2f}"
    return text if figure.half is None else f"{text} ± {100 * figure.half:.2f}"


def show(rows: Sequence[Row], console: Console) -> None:
    """Print a table for each data set and net, then what backpropagation is better at, then what failed."""
    found = groups(rows)
    effects = {(c.group, c.arm, c.measure.id): c for c in compare(against_baseline(found))}
    for group in found:
        table = Table(title=group.title, title_justify="left")
        physical = any("physics" in row for arm in group.arms for row in arm.rows)
        for column in COLUMNS:
            if physical and column == "train s":
                table.add_column("train passes", justify="right", no_wrap=True)
            left = column in ("arm", "level", "other readouts %")
            table.add_column(column, justify="left" if left else "right", no_wrap=True)
        for arm in group.arms:
            of_arm = {
                m: c for (title, name, m), c in effects.items() if (title, name) == (group.title, arm.name)
            }
            table.add_row(*_line(arm, of_arm, physical))
        console.print(table)
        if group.baseline is not None:
            accuracy = [c for c in effects.values() if c.group == group.title and c.measure.id == "accuracy"]
            console.print(_where_baseline_wins(accuracy))
        for text in filter(None, map(weak_blocks, group.arms)):
            console.print(f"single blocks, {text}", highlight=False, markup=False)
    if found:
        console.print(LEGEND, highlight=False)
    for row in failures(rows):
        console.print(
            f"[red]{row['status']}[/red] {row['arm']}, seed {row['seed']}: {last_line(row)}", highlight=False
        )


def _passes(arm: Arm) -> str:
    """Rows that devices were sent in training; nothing where there is no device."""
    sent = list(arm.by_seed("physics", "passes", "train").values())
    return f"{estimate(sent).mean:,.0f}" if sent else "–"


def _line(arm: Arm, effects: Mapping[str, Comparison], physical: bool) -> list[str]:
    first = arm.rows[0]
    others = [name for name in first["metrics"]["readouts"] if name != first["method"]["readout"]]
    readouts = [
        f"{name} {percent(estimate(list(arm.by_seed('metrics', 'readouts', name).values())))}"
        for name in others
    ]
    if of_blocks := alone(arm):
        readouts.append(f"blocks alone {of_blocks}")
    return [
        arm.name,
        first["locality"],
        str(len(arm.rows)),
        percent(estimate(list(arm.by_seed("metrics", "test_accuracy").values()))),
        _points(effects.get("accuracy")),
        *([_passes(arm)] if physical else []),
        f"{estimate(list(arm.by_seed('time', 'train_s').values())).mean:.2f}",
        *(_ratio(effects.get(m)) for m in ("train_s", "train_flops", "saved_bytes")),
        "\n".join(readouts),
    ]


def _points(comparison: Comparison | None) -> str:
    """A difference of accuracies, in points, with its interval and the mark of its verdict."""
    return "–" if comparison is None else f"{short(comparison)} {MARKS[comparison.effect.verdict]}"


def _ratio(comparison: Comparison | None) -> str:
    return "–" if comparison is None else f"{comparison.effect.value:.2f}"


def _where_baseline_wins(accuracies: Sequence[Comparison]) -> str:
    """The arms that backpropagation is more accurate than, and those of which it is ahead, undecided."""
    behind = [c.arm for c in accuracies if c.loses]
    open_ = [c.arm for c in accuracies if c.effect.value < 0 and c.effect.verdict is Verdict.INCONCLUSIVE]
    text = f"Backpropagation is more accurate than: {', '.join(behind) or 'none of them'}"
    return f"{text}; ahead, and not decided, of: {', '.join(open_)}" if open_ else text
