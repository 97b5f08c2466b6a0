"""Rows grouped into arms: an arm is one method in one setting, with a row for each seed."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from bpfree.bench.files import Mapped, Values
from bpfree.bench.metric import RowMetric, metric_of
from bpfree.bench.results import Row, figure
from bpfree.bench.statistics import Run
from bpfree.bench.terminal import visible

#: Ids of trainers that are backpropagation.
BASELINES = ("backprop", "backprop_gnn")

PROTOCOLS = {
    "fixed": "fixed epochs",
    "A": "own convergence",
    "B": "matched passes",
}


def run_of(row: Row) -> Run:
    """The run of its arm that a row belongs to."""
    return (row["seed"], row["device_seed"]) if "device_seed" in row else row["seed"]


def is_baseline(trainer: Values) -> bool:
    """Whether a trainer, as a row's config names it, is backpropagation; of devices, with an exact model."""
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
        """The number at ``path`` of each row that has it, by run."""
        values = {run_of(row): figure(row, *path) for row in self.rows}
        return {seed: value for seed, value in values.items() if value is not None}


@dataclass
class Group:
    """The arms that share data set, net, metric and protocol: those that may be compared.

    Attributes:
        setting: Data set and net.
        protocol: One of `PROTOCOLS`.
        arms: In the order of their first rows.
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
    """The metric of each block on test data, in the unit of tables, bottom first, as means over seeds; of
    many blocks the first three and the last. Empty for one block, or where blocks have no scores.
    """
    blocks_by_row = [row["metrics"].get("blocks") or [] for row in arm.rows]
    if len({len(blocks) for blocks in blocks_by_row}) != 1:
        return ""
    texts = [
        "–" if None in of_block else arm.metric.written(arm.metric.scale * sum(of_block) / len(of_block), 1)
        for of_block in zip(*blocks_by_row, strict=True)
    ]
    texts = texts if len(texts) <= 6 else [*texts[:3], "…", texts[-1]]
    return " ".join(texts) if len(texts) > 1 else ""


def protocol(row: Row) -> str:
    """The protocol of a row: one of `PROTOCOLS`."""
    named = row.get("protocol", {}).get("id")
    return str(named or ("fixed" if row["config"]["fit"]["patience"] is None else "A"))


def groups(rows: Iterable[Row]) -> list[Group]:
    """Successful rows by data set, net and protocol, and by arm, in the order of their first rows.

    Arms with another metric are in a group of their own. Arms with one name and different settings are
    separate, and the difference is added to the name. The group of matched passes contains the baseline of
    own convergence, whose passes it matches.
    """
    result: dict[tuple[str, str], Group] = {}
    arms: dict[str, Arm] = {}
    metrics: dict[str, RowMetric] = {}
    for row in rows:
        if row["status"] != "ok":
            continue
        setting = f"{describe(row['config']['dataset'])}, {describe(row['config']['net'])}"
        metric, kind = metric_of(row), protocol(row)
        if metrics.setdefault(setting, metric) != metric:
            setting += f" ({metric.label})"
        if (setting, kind) not in result:
            result[setting, kind] = Group(setting, kind)
        group = result[setting, kind]
        key = json.dumps([setting, kind, row["arm"], row["config"]], sort_keys=True)
        if key not in arms:
            namesake = next((a for a in group.arms if a.rows[0]["arm"] == row["arm"]), None)
            suffix = f" [{differing(row, namesake.rows[0])}]" if namesake is not None else ""
            name, taken = visible(row["arm"] + suffix + _stand_in(row)), {arm.name for arm in group.arms}
            numbered = (f"{name} ({n})" for n in itertools.count(2))
            arms[key] = Arm(next(n for n in itertools.chain([name], numbered) if n not in taken))
            group.arms.append(arms[key])
        arms[key].rows.append(row)
    for (setting, kind), group in result.items():
        same_setting = result.get((setting, "A"))
        if kind == "B" and same_setting is not None and same_setting.baseline is not None:
            group.arms.insert(0, same_setting.baseline)
    return list(result.values())


def _stand_in(row: Row) -> str:
    """A note for names of arms whose rows were computed by a surrogate or by a recording of a device."""
    kinds = {device["kind"] for device in row.get("physics", {}).get("devices", [])}
    labels = {"surrogate": "fitted surrogate", "recorded": "recorded"}
    shown = [text for kind, text in labels.items() if kind in kinds]
    return f" ({', '.join(shown)})" if shown else ""


def differing(row: Row, other: Row) -> str:
    """The settings in which ``row`` differs from ``other``, those that only one of them has included."""
    pairs = [(row["config"], other["config"], "")]
    settings = []
    while pairs:
        ours, theirs, path = pairs.pop(0)
        for key, value in ours.items():
            if isinstance(value, dict) and isinstance(theirs.get(key, {}), dict):
                pairs.append((value, theirs.get(key, {}), f"{path}{key}."))
            elif theirs.get(key) != value:
                settings.append(f"{path}{key}={value}")
        settings += [f"{path}{key} not set" for key, value in theirs.items() if key not in ours and value]
    return ", ".join(settings)


def describe(settings: Mapped) -> str:
    """A data set or net with the settings that are not the usual ones."""
    usual = {"name": settings["name"], "activation": "relu", "pool": "avg", "bias": True, "output_bias": True}
    usual |= {"split": "folds", "normalize": True, "heads": 4}
    parts = [
        f"{k} {_in_short(v) if isinstance(v, list) else v}"
        for k, v in sorted(settings.items())
        if (v != usual[k] if k in usual else v)
    ]
    return visible(" ".join([settings["name"], *parts]))


def _in_short(values: list[object]) -> str:
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
    """The last line of a failed row's reason."""
    lines = str(row.get("reason") or "").strip().splitlines()
    return visible((lines or ["no reason was given"])[-1])
