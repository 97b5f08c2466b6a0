"""Winners, costs and plots of the searches of `bpfree.tune` that gave the arms their settings."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bpfree._errors import BadValue
from bpfree.bench.files import Mapped
from bpfree.bench.metric import RowMetric, common, metric_in
from bpfree.bench.numbers import number
from bpfree.bench.report.figures import NOTHING, Figure, Table

#: The schema of summaries that can be read.
SCHEMA = 1


@dataclass(frozen=True)
class Search:
    """A finished or unfinished search, read from its folder.

    Attributes:
        name: Name of the experiment.
        arms: The summary of each arm.
        plots: Title and SVG, as a data URL, of each plot.
    """

    name: str
    arms: list[Mapped]
    plots: list[tuple[str, str]]


def read_search(folder: Path) -> Search:
    """Read the search in ``folder``, the ``--out`` of `python -m bpfree.tune`.

    Raises:
        BadValue: If there is no summary of a search, or it cannot be read.
    """
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        files = sorted((folder / "plots").glob("*.svg"))
        plots = [(svg.stem.replace("_", " "), _address(svg.read_bytes())) for svg in files]
    except (OSError, ValueError) as error:
        raise BadValue(
            f"{folder}: not the folder of a search ({error}); expected the --out of bpfree.tune"
        ) from None
    if not isinstance(summary, dict) or summary.get("schema") != SCHEMA:
        raise BadValue(f"{path}: not the summary of a search, or of another version of bpfree.tune")
    return Search(summary["name"], summary["arms"], plots)


def _address(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def searched(searches: Sequence[Search]) -> Table:
    """The table of winners and costs."""
    metric = common(metric_in(arm) for search in searches for arm in search.arms)
    validation = "validation metric" if metric is None else metric.head(f"validation {metric.label}")
    heads = ["arm", "search", "trials", "pruned", "diverged", "seconds", validation, "settings"]
    table = Table("searches", "The settings that won, and the cost of the search", heads, filters=[1])
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


def _best(metric: RowMetric, best: Mapped, named: bool) -> Figure:
    note = metric.head(metric.label) if named else ""
    return Figure(metric.written(metric.scale * best["value"]), note, best["value"])


def _settings(values: Mapped) -> str:
    return ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
