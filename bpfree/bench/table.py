"""The table of a set of rows, for the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from bpfree.bench.results import Row
from bpfree.bench.statistics import Estimate, estimate, paired_difference

BASELINE = "backprop"


@dataclass
class Arm:
    """The rows of one method on one data set and net."""

    name: str
    rows: list[Row] = field(default_factory=list)

    def by_seed(self, *path: str) -> dict[int, float]:
        """A figure of each seed."""
        found = {}
        for row in self.rows:
            value: Any = row
            for key in path:
                value = value.get(key, {}) if isinstance(value, dict) else {}
            if isinstance(value, int | float):
                found[row["seed"]] = float(value)
        return found


def groups(rows: Iterable[Row]) -> dict[str, dict[str, Arm]]:
    """Successful rows by "data set, net" and by arm, in the order in which they come."""
    found: dict[str, dict[str, Arm]] = {}
    for row in rows:
        if row["status"] == "ok":
            title = f"{describe(row['config']['dataset'])}, {describe(row['config']['net'])}"
            arms, key = found.setdefault(title, {}), json.dumps([row["arm"], row["config"]], sort_keys=True)
            if key not in arms:
                namesake = next((a for a in arms.values() if a.rows[0]["arm"] == row["arm"]), None)
                suffix = f" [{differing(row, namesake.rows[0])}]" if namesake is not None else ""
                arms[key] = Arm(row["arm"] + suffix)
            arms[key].rows.append(row)
    return found


def differing(row: Row, other: Row) -> str:
    """The settings of ``row`` that ``other`` does not share."""
    pairs = [(row["config"], other["config"], "")]
    found = []
    while pairs:
        ours, theirs, path = pairs.pop(0)
        for key, value in ours.items():
            if isinstance(value, dict):
                pairs.append((value, theirs.get(key, {}), f"{path}{key}."))
            elif theirs.get(key) != value:
                found.append(f"{path}{key}={value}")
    return ", ".join(found)


def describe(settings: dict[str, Any]) -> str:
    """A data set or net with the settings that were given."""
    usual = {"name": settings["name"], "activation": "relu", "pool": "avg", "bias": True, "output_bias": True}
    parts = [
        f"{k} {'-'.join(map(str, v)) if isinstance(v, list) else v}"
        for k, v in sorted(settings.items())
        if v and usual.get(k) != v
    ]
    return " ".join([settings["name"], *parts])


def percent(figure: Estimate | None, sign: bool = False) -> str:
    """An accuracy, or a difference of accuracies, in points, with its interval."""
    if figure is None:
        return "–"
    text = f"{100 * figure.mean:+.2f}" if sign else f"{100 * figure.mean:.2f}"
    return text if figure.half is None else f"{text} ± {100 * figure.half:.2f}"


def ratio(arm: Arm, baseline: Arm | None, *path: str) -> str:
    """Mean over seeds of a figure divided by the baseline's."""
    if baseline is None:
        return "–"
    ours, theirs = arm.by_seed(*path), baseline.by_seed(*path)
    common = [seed for seed in ours if theirs.get(seed)]
    return f"{sum(ours[s] / theirs[s] for s in common) / len(common):.2f}" if common else "–"


def show(rows: Sequence[Row], console: Console) -> None:
    """Print a table for each data set and net, then what backpropagation is better at, then what failed."""
    for title, arms in groups(rows).items():
        baseline = next((a for a in arms.values() if a.rows[0]["trainer"] == BASELINE), None)
        table = Table(title=title, title_justify="left", caption_justify="left")
        for column in ("arm", "level", "seeds", "test accuracy %", "– backprop", "other readouts %"):
            table.add_column(
                column, justify="left" if column in ("arm", "level", "other readouts %") else "right"
            )
        for column in ("train s", "time ÷ BP", "step FLOPs ÷ BP", "all FLOPs ÷ BP", "saved ÷ BP"):
            table.add_column(column, justify="right")
        for arm in arms.values():
            table.add_row(*_line(arm, baseline))
        console.print(table)
        if baseline is not None:
            console.print(_where_baseline_wins(arms, baseline))
    done = {row["cell_id"] for row in rows if row["status"] == "ok"}
    failed = {row["cell_id"]: row for row in rows if row["status"] != "ok" and row["cell_id"] not in done}
    for row in failed.values():
        last = (row["reason"].strip().splitlines() or ["no reason was given"])[-1]
        console.print(f"[red]{row['status']}[/red] {row['arm']}, seed {row['seed']}: {last}", highlight=False)


def _line(arm: Arm, baseline: Arm | None) -> list[str]:
    accuracy = arm.by_seed("metrics", "test_accuracy")
    base = None if baseline is None or baseline is arm else baseline.by_seed("metrics", "test_accuracy")
    difference = None if base is None else paired_difference(accuracy, base)
    first = arm.rows[0]
    others = [name for name in first["metrics"]["readouts"] if name != first["method"]["readout"]]
    readouts = [
        f"{name} {percent(estimate(list(arm.by_seed('metrics', 'readouts', name).values())))}"
        for name in others
    ]
    return [
        arm.name,
        first["locality"],
        str(len(arm.rows)),
        percent(estimate(list(accuracy.values()))),
        percent(difference, sign=True),
        "\n".join(readouts),
        f"{estimate(list(arm.by_seed('time', 'train_s').values())).mean:.2f}",
        ratio(arm, baseline, "time", "train_s"),
        ratio(arm, baseline, "flops", "train_step"),
        ratio(arm, baseline, "flops", "train_total"),
        ratio(arm, baseline, "memory", "saved_bytes"),
    ]


def _where_baseline_wins(arms: dict[str, Arm], baseline: Arm) -> str:
    """The arms below backpropagation: those whose 95 % interval says so, and those where it is open."""
    behind: list[str] = []
    undecided: list[str] = []
    base = baseline.by_seed("metrics", "test_accuracy")
    for arm in arms.values():
        found = paired_difference(arm.by_seed("metrics", "test_accuracy"), base)
        if arm is baseline or found is None or found.mean >= 0:
            continue
        (behind if found.half is not None and found.mean + found.half < 0 else undecided).append(arm.name)
    text = f"Backpropagation is more accurate than: {', '.join(behind) or 'none of them'}"
    return f"{text}; ahead within the interval of: {', '.join(undecided)}" if undecided else text
