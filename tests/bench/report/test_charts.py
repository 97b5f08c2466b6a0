"""The charts of a report."""

from __future__ import annotations

import random
from xml.etree import ElementTree

import pytest

from bpfree.bench.arms import groups
from bpfree.bench.measures import COSTS
from bpfree.bench.report.charts import SERIES, depth, front, memory, pareto, styles
from tests.bench.report.samples import sample
from tests.bench.rows import arm, row


@pytest.mark.parametrize("case", range(20))
def test_the_front_is_what_no_other_point_beats(case: int) -> None:
    draw = random.Random(case)
    points = {str(i): (draw.randrange(6), draw.randrange(6)) for i in range(12)}
    found = front({name: (float(x), float(y)) for name, (x, y) in points.items()})

    def beaten(name: str) -> bool:
        x, y = points[name]
        return any(a <= x and b >= y and (a, b) != (x, y) for a, b in points.values())

    assert {points[name] for name in found} == {points[name] for name in points if not beaten(name)}
    assert [points[name][0] for name in found] == sorted({points[name][0] for name in found})


def test_arms_look_different_and_backpropagation_always_the_same() -> None:
    rows = [one for i in range(20) for one in arm("mono_forward", [0.9], f"arm {i}", config__trainer__lr=i)]
    found = styles(groups(rows + arm("backprop", [0.9])))
    assert len({(look.color, look.marker) for look in found.values()}) == 21
    assert (found["backprop"].color, found["backprop"].symbol) == (SERIES[0], "■")


def test_charts_have_the_colors_of_the_page_and_a_label() -> None:
    found = groups(sample())
    looks = styles(found)
    charts = [
        pareto(found[0], COSTS["train_s"], looks, 7),
        memory(found[2:], COSTS["saved_bytes"], looks, 8),
    ]
    for number, chart in zip((7, 8), charts, strict=True):
        assert chart is not None
        root = ElementTree.fromstring(chart.svg)
        assert root.get("role") == "img" and root.get("aria-label") == chart.title
        assert all(one.get("id", f"chart{number}-").startswith(f"chart{number}-") for one in root.iter())
        assert "var(--series-0)" in chart.svg and "#0203" not in chart.svg and "#0102" not in chart.svg
    assert charts[0] is not None and "(Pareto front, dashed): mono_forward, backprop" in charts[0].caption


def test_one_arm_is_no_comparison() -> None:
    group = groups(arm("backprop", [0.9, 0.8]))[0]
    assert pareto(group, COSTS["train_s"], styles([group]), 0) is None
    assert memory([group], COSTS["saved_bytes"], styles([group]), 0) is None


def test_depth_counts_layers_with_weights() -> None:
    assert depth(row("backprop", 0)) == 3
    assert depth(row("backprop", 0, config__net={"name": "cnn", "channels": [4, 8]})) == 3
    assert depth(row("backprop", 0, config__net={"name": "gnn"})) is None
