"""Every table names the metric of its rows, and follows its direction; rows of schema 1 are still read."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bpfree import BadValue
from bpfree.bench import cell as bench_cell
from bpfree.bench.arms import groups
from bpfree.bench.compare import changes
from bpfree.bench.config import cells
from bpfree.bench.measures import against_baseline, compare
from bpfree.bench.metric import RowMetric, metric_of
from bpfree.bench.report import html
from bpfree.bench.report.charts import curves, pareto, styles
from bpfree.bench.report.tables import results, targets
from bpfree.bench.results import Results, upgraded
from bpfree.bench.table import show
from bpfree.bench.targets import to_target
from bpfree.tune import trial
from tests.bench.rows import Row, arm, in_metric, row

LOW = [0.010, 0.0101, 0.0099, 0.0102, 0.0098]
HIGH = [0.020, 0.0202, 0.0199, 0.0203, 0.0197]


def errors() -> list[Row]:
    """Backpropagation with twice the mean squared error of the other arm, which has the lower curve too."""
    rows = arm("backprop", HIGH, curve=[[5, 0.05, 1.0], [10, 0.02, 2.0]], time__train_s=3.0)
    rows += arm("mono_forward", LOW, curve=[[5, 0.03, 1.0], [10, 0.01, 2.0]])
    return in_metric(rows, "mse", better=False, share=False)


def printed(rows: list[Row]) -> str:
    file = io.StringIO()
    show(rows, Console(file=file, width=180))
    return file.getvalue()


def test_the_terminal_names_the_metric() -> None:
    rows = arm("backprop", [0.9, 0.91]) + arm("mono_forward", [0.8, 0.81])
    text = printed(rows)
    assert "test accuracy %" in text and "– backprop, points" in text and "is more accurate than" in text
    text = printed(in_metric(rows, "roc_auc", better=True, share=True))
    assert "test ROC AUC %" in text and "accura" not in text and "90.50 ±" in text
    assert "Backpropagation has a better ROC AUC than" in text


def test_an_error_has_no_percent_and_the_smaller_is_better() -> None:
    text = printed(errors())
    assert "test mean squared error " in text and "÷ backprop" in text and "accura" not in text
    assert "0.01000 ± 0.00020" in text and "×0.499" in text and "other readouts %" not in text
    assert "Backpropagation has a better mean squared error than: none of them" in text
    (found,) = [c for c in compare(against_baseline(groups(errors()))) if c.measure.id == "mse"]
    assert found.wins and not found.loses
    (back,) = [c for c in changes(errors()[5:], worse_by(1.2)).comparisons if c.measure.id == "mse"]
    assert back.loses


def worse_by(factor: float) -> list[Row]:
    rows = errors()[5:]
    for one in rows:
        one["metrics"]["test_mse"] *= factor
    return rows


def test_the_baseline_is_the_one_with_the_smaller_error() -> None:
    rows = [
        *arm("backprop", [0.02], "poor", metrics__val_accuracy=0.02),
        *arm("backprop", [0.01], "good", metrics__val_accuracy=0.01, config__trainer__lr=1),
    ]
    (group,) = groups(in_metric(rows, "mse", better=False, share=False))
    assert group.baseline is not None and group.baseline.name == "good"
    (group,) = groups(rows)
    assert group.baseline is not None and group.baseline.name == "poor"


def test_a_target_of_an_error_is_reached_from_above() -> None:
    curve = [[1, 0.5, 1.0], [2, 0.3, 2.0], [3, 0.4, 3.0], [4, 0.3, 4.0], [5, 0.2, 5.0]]
    (error,) = in_metric([row("backprop", 0, curve=curve)], "mse", better=False, share=False)
    reached = to_target(error, 0.3)
    assert reached is not None and reached.step == 4
    assert to_target(error, 0.1) is None


def test_the_report_names_the_metric_and_its_direction() -> None:
    found = groups(errors())
    table = results(found, compare(against_baseline(found)))
    assert table.heads[4:6] == ["test mean squared error", "against backprop"]
    own = next(line for line in table.rows if line[0].text == "mono_forward")
    assert (own[4].text, own[5].text[:6], own[5].kind) == ("0.01000 ± 0.00020", "×0.499", "better")
    looks = styles(found)
    cost = compare(against_baseline(found))[1].measure
    chart, way = pareto(found[0], cost, looks, 0), curves(found[0], cost, [0.02], looks, 1)
    assert chart is not None and way is not None
    # The other arm is better and cheaper, so it alone is the front.
    assert "(Pareto front, dashed): mono_forward." in chart.caption and "Mean squared error" in chart.title
    assert "Dotted: 0.02." in way.caption
    assert targets(found, [0.02]).heads[2] == "target" and targets(found, [0.02]).rows[0][2].text == "0.02"
    page = html(errors())
    assert "<dt>test mean squared error</dt>" in page and "Mean squared error against cost" in page
    assert "accuracy, %" not in page


def test_several_metrics_are_never_compared_with_one_another() -> None:
    rows = errors() + arm("backprop", [0.9, 0.91]) + arm("mono_forward", [0.8, 0.81])
    found = groups(rows)
    assert [g.setting for g in found] == ["digits, mlp hidden 32-16", "digits, mlp hidden 32-16 (accuracy)"]
    by_title = {c.group: c.measure.id for c in compare(against_baseline(found)) if c.measure.id != "train_s"}
    assert len(by_title) == 2
    table = results(found, compare(against_baseline(found)))
    assert table.heads[4] == "test metric"
    assert [line[4].note for line in table.rows] == ["mean squared error"] * 2 + ["accuracy, %"] * 2
    assert "Metric against cost" in html(rows)


def old(measure: str | None, value: float) -> Row:
    """A row of schema 1."""
    found = row("backprop", 0, schema=1, curve=[[5, value, 1.0]])
    named = {} if measure is None else {"measure": measure}
    found["metrics"] = {
        "test_accuracy": value, "val_accuracy": value, "readouts": {"last": value}, "blocks": [value, None],
        "loss": [0.1], **named,
    }  # fmt: skip
    return found


@pytest.mark.parametrize(
    ("measure", "value", "name", "expected"),
    [
        (None, 0.9, "accuracy", 0.9),
        ("accuracy", 0.9, "accuracy", 0.9),
        ("roc_auc", 0.8, "roc_auc", 0.8),
        ("negative squared error", -0.25, "mse", 0.25),
    ],
)
def test_old_rows_get_the_name_and_the_sign(
    measure: str | None, value: float, name: str, expected: float, tmp_path: Path
) -> None:
    (tmp_path / "results.jsonl").write_text(json.dumps(old(measure, value)) + "\n")
    results = Results(tmp_path)
    for found in (*results.read(), *results.done().values()):
        metric, metrics = metric_of(found), found["metrics"]
        assert (metric.name, metric.test(found), metric.validation(found)) == (name, expected, expected)
        assert metrics["readouts"] == {"last": expected} and metrics["blocks"] == [expected, None]
        assert found["curve"] == [[5, expected, 1.0]] and metrics["loss"] == [0.1]
        assert "measure" not in metrics and ("test_accuracy" in metrics) == (name == "accuracy")
        assert metric == RowMetric(name, name != "mse", name != "mse")


def test_an_unknown_measure_of_an_old_row_is_refused() -> None:
    with pytest.raises(BadValue, match=r"measure = 'r2': expected one of accuracy, roc_auc, negative"):
        upgraded(old("r2", 0.5))


@pytest.mark.parametrize("changes", [{"status": "error"}, {"schema": 2}])
def test_other_rows_stay_as_they_are(changes: dict[str, Any]) -> None:
    found = row("backprop", 0, **changes)
    assert upgraded(found) is found


LINKS: dict[str, Any] = {
    "dataset": {"name": "digits_graph", "split": "links"},
    "net": {"name": "gcn", "hidden": [8, 8]},
    "fit": {"epochs": 2, "batch_size": 10_000},
    "trainer": {"id": "backprop_gnn"},
    "seeds": [0],
}


def test_rows_and_trials_of_edges_name_the_area(tmp_path: Path) -> None:
    (cell,) = cells(LINKS)
    found = bench_cell.run(cell, tmp_path, 20.0, lambda *_: None)
    metrics, metric = found["metrics"], metric_of(found)
    assert (metric.name, metrics["chance"]) == ("roc_auc", 0.5) and "test_accuracy" not in metrics
    assert metrics["test_roc_auc"] == metrics["readouts"]["last"] == metric.test(found)
    assert found["curve"][-1][1] <= metrics["val_roc_auc"] == max(value for _, value, *_ in found["curve"])
    told: list[tuple[int, float]] = []
    outcome = trial.run(cell, tmp_path, 20.0, lambda *content: told.append(content))  # type: ignore[arg-type]
    assert outcome["val_roc_auc"] == metrics["val_roc_auc"] and outcome["metric"] == "roc_auc"
    assert [value for _, value in told] == [value for _, value, *_ in found["curve"]]
