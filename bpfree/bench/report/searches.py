"""What the searches found that gave the arms their settings: winners, costs and pictures of `bpfree.tune`."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpfree._errors import BadValue
from bpfree.bench.metric import RowMetric, common, metric_in
from bpfree.bench.numbers import number
from bpfree.bench.report.figures import NOTHING, Figure, Table

#: The schema of summaries that is understood here.
SCHEMA = 1


@dataclass(frozen=True)
class Search:
    """A finished or unfinished search, as its folder tells.

    Attributes:
        name: Of the experiment.
        arms: The summaries of what was searched, by arm.
        pictures: Title and SVG, as a data address, of each picture.
    """

    name: str
    arms: list[dict[str, Any]]
    pictures: list[tuple[str, str]]


def read_search(folder: Path) -> Search:
    """What `python -m bpfree.tune --out` left in ``folder``.

    Raises:
        BadValue: If there is no summary of a search there, or none that can be read.
    """
    path = folder / "summary.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        drawn = sorted((folder / "plots").glob("*.svg"))
        pictures = [(svg.stem.replace("_", " "), _address(svg.read_bytes())) for svg in drawn]
    except (OSError, ValueError) as error:
        raise BadValue(
            f"{folder}: not the folder of a search ({error}); name what was given to bpfree.tune as --out"
        ) from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise BadValue(f"{path}: not the summary of a search, or of another version of bpfree.tune")
    return Search(found["name"], found["arms"], pictures)


def _address(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def searched(searches: Sequence[Search]) -> Table:
    """Winners and costs."""
    metric = common(metric_in(arm) for search in searches for arm in search.arms)
    validation = "validation metric" if metric is None else metric.head(f"validation {metric.label}")
    heads = ["arm", "search", "trials", "pruned", "diverged", "seconds", validation, "settings"]
    table = Table("searches", "The settings that won, and what finding them has cost", heads, filters=[1])
    for search in searches:
        for arm in search.arms:
            best = arm.get("best")
            edge = f"at an end of its range: {', '.join(arm['edge'])}" if arm.get("edge") else ""
            table.anchors.append("")
            table.rows.append([
                Figure(arm["label"]),
                Figure(search.name),
                *(Figure(str(arm[key]), order=arm[key]) for key in ("trials", "pruned", "diverged")),
                Figure(number(arm["seconds"]), order=arm["seconds"]),
                _best(metric_in(arm), best, named=metric is None) if best else NOTHING,
                Figure(_settings(best["params"]), edge) if best else Figure("–"),
            ])  # fmt: skip
    return table


def _best(metric: RowMetric, best: dict[str, Any], named: bool) -> Figure:
    note = metric.head(metric.label) if named else ""
    return Figure(metric.written(metric.scale * best["value"]), note, best["value"])


def _settings(values: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
