"""Rows put together: one arm is one method in one setting, its rows are its seeds."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bpfree.bench.metric import RowMetric, metric_of
from bpfree.bench.results import Row, figure
from bpfree.bench.terminal import visible

#: Trainers that are backpropagation.
BASELINES = ("backprop", "backprop_gnn")

PROTOCOLS = {
    "fixed": "fixed epochs",
    "A": "own convergence",
    "B": "matched passes",
}


#: What tells the runs of an arm apart: the seed, or the model's seed and the device's.
Run = Any


def run_of(row: Row) -> Run:
    """Which run of its arm a row is."""
    return (row["seed"], row["device_seed"]) if "device_seed" in row else row["seed"]


def is_baseline(trainer: Mapping[str, Any]) -> bool:
    """Whether a config's trainer is backpropagation; through devices, with an exact model of them."""
    ideal = trainer["id"] == "physical_backprop" and trainer["model"] == "ideal"
    return bool(trainer["id"] in BASELINES or ideal)


@dataclass
class Arm:
    """The rows of one method on one data set and net."""

    name: str
    rows: list[Row] = field(default_factory=list)

    @property
    def is_baseline(self) -> bool:
        """Whether this is backpropagation, see `is_baseline`."""
        return is_baseline(self.rows[0]["config"]["trainer"])

    @property
    def metric(self) -> RowMetric:
        """The metric of its rows."""
        return metric_of(self.rows[0])

    def by_seed(self, *path: str) -> dict[Run, float]:
        """A figure of each seed that has it."""
        found = {run_of(row): figure(row, *path) for row in self.rows}
        return {seed: value for seed, value in found.items() if value is not None}


@dataclass
class Group:
    """The arms that share data set, net, metric and protocol: those that may be compared.

    Attributes:
        setting: Data set and net.
        protocol: One of `PROTOCOLS`.
        arms: In the order in which their first rows come.
    """

    setting: str
    protocol: str
    arms: list[Arm] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Data set, net and protocol."""
        return f"{self.setting}, {PROTOCOLS[self.protocol]}"

    @property
    def metric(self) -> RowMetric:
        """The metric of its arms."""
        return self.arms[0].metric

    @property
    def baseline(self) -> Arm | None:
        """Backpropagation; of several, the one with the best value of the metric on validation data."""
        return max((arm for arm in self.arms if arm.is_baseline), key=_validation, default=None)


def _validation(arm: Arm) -> float:
    values = [value for row in arm.rows if (value := arm.metric.validation(row)) is not None]
    return arm.metric.signed(sum(values) / len(values)) if values else -math.inf


def alone(arm: Arm) -> str:
    """The metric of every block by itself on test data, in the unit of tables, bottom first, as means over
    seeds; of many blocks the first three and the last. Nothing where there is but one, or none can be told
    apart.
    """
    told = [row["metrics"].get("blocks") or [] for row in arm.rows]
    if len({len(blocks) for blocks in told}) != 1:
        return ""
    found = [
        "–" if None in of_block else arm.metric.written(arm.metric.scale * sum(of_block) / len(of_block), 1)
        for of_block in zip(*told, strict=True)
    ]
    found = found if len(found) <= 6 else [*found[:3], "…", found[-1]]
    return " ".join(found) if len(found) > 1 else ""


def protocol(row: Row) -> str:
    """The protocol of a row: one of `PROTOCOLS`."""
    named = row.get("protocol", {}).get("id")
    return str(named or ("fixed" if row["config"]["fit"]["patience"] is None else "A"))


def groups(rows: Iterable[Row]) -> list[Group]:
    """Successful rows by data set, net and protocol, and by arm, in the order in which they come.

    Arms of another metric are a group of their own. Arms of one name but other settings stay apart; what
    differs is added to the name. Matched passes have the baseline of own convergence, whose passes they
    match.
    """
    found: dict[tuple[str, str], Group] = {}
    arms: dict[str, Arm] = {}
    metrics: dict[str, RowMetric] = {}
    for row in rows:
        if row["status"] != "ok":
            continue
        setting = f"{describe(row['config']['dataset'])}, {describe(row['config']['net'])}"
        metric, kind = metric_of(row), protocol(row)
        if metrics.setdefault(setting, metric) != metric:
            setting += f" ({metric.label})"
        if (setting, kind) not in found:
            found[setting, kind] = Group(setting, kind)
        group = found[setting, kind]
        key = json.dumps([setting, kind, row["arm"], row["config"]], sort_keys=True)
        if key not in arms:
            namesake = next((a for a in group.arms if a.rows[0]["arm"] == row["arm"]), None)
            suffix = f" [{differing(row, namesake.rows[0])}]" if namesake is not None else ""
            name, taken = visible(row["arm"] + suffix + _stand_in(row)), {arm.name for arm in group.arms}
            numbered = (f"{name} ({n})" for n in itertools.count(2))
            arms[key] = Arm(next(n for n in itertools.chain([name], numbered) if n not in taken))
            group.arms.append(arms[key])
        arms[key].rows.append(row)
    for (setting, kind), group in found.items():
        own = found.get((setting, "A"))
        if kind == "B" and own is not None and own.baseline is not None:
            group.arms.insert(0, own.baseline)
    return list(found.values())


def _stand_in(row: Row) -> str:
    """Says in every table that what answered was no device, and no simulation of one either."""
    kinds = {device["kind"] for device in row.get("physics", {}).get("devices", [])}
    said = {"surrogate": "fitted surrogate", "recorded": "recorded"}
    found = [text for kind, text in said.items() if kind in kinds]
    return f" ({', '.join(found)})" if found else ""


def differing(row: Row, other: Row) -> str:
    """The settings of ``row`` that ``other`` does not share, those that it lacks included."""
    pairs = [(row["config"], other["config"], "")]
    found = []
    while pairs:
        ours, theirs, path = pairs.pop(0)
        for key, value in ours.items():
            if isinstance(value, dict) and isinstance(theirs.get(key, {}), dict):
                pairs.append((value, theirs.get(key, {}), f"{path}{key}."))
            elif theirs.get(key) != value:
                found.append(f"{path}{key}={value}")
        found += [f"{path}{key} not set" for key, value in theirs.items() if key not in ours and value]
    return ", ".join(found)


def describe(settings: dict[str, Any]) -> str:
    """A data set or net with the settings that were given."""
    usual = {"name": settings["name"], "activation": "relu", "pool": "avg", "bias": True, "output_bias": True}
    usual |= {"split": "folds", "normalize": True, "heads": 4}
    parts = [
        f"{k} {_in_short(v) if isinstance(v, list) else v}"
        for k, v in sorted(settings.items())
        if (v != usual[k] if k in usual else v)
    ]
    return visible(" ".join([settings["name"], *parts]))


def _in_short(values: list[Any]) -> str:
    same = len(values) > 3 and len(set(map(str, values))) == 1
    return f"{len(values)}×{values[0]}" if same else "-".join(map(str, values))


def failures(rows: Iterable[Row]) -> list[Row]:
    """The last row of each cell that has no successful one."""
    rows = list(rows)
    done = {row["cell_id"] for row in rows if row["status"] == "ok"}
    return list(
        {row["cell_id"]: row for row in rows if row["status"] != "ok" and row["cell_id"] not in done}.values()
    )


def last_line(row: Row) -> str:
    """What a failed row says, in one line."""
    lines = str(row.get("reason") or "").strip().splitlines()
    return visible((lines or ["no reason was given"])[-1])
