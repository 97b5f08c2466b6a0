"""Windows of several quantities; common behavior of windows and stopwatches is tested in test_time.py."""

from __future__ import annotations

import pytest

from bpfree import BadValue
from bpfree.meters import Windows


class Gauges:
    def __init__(self) -> None:
        self.now = {"a": 0.0, "b": 100.0}

    def grow(self, a: float, b: float) -> None:
        self.now["a"] += a
        self.now["b"] += b

    def __call__(self) -> dict[str, float]:
        return dict(self.now)


def test_every_quantity_is_charged_to_the_innermost_window() -> None:
    gauges = Gauges()
    windows = Windows("cpu", gauges)
    with windows("outer"):
        gauges.grow(1, 10)
        with windows("inner"):
            gauges.grow(2, 20)
        gauges.grow(4, 40)
    gauges.grow(8, 80)
    assert windows.totals() == {
        "outer": {"a": 5.0, "b": 50.0, "pieces": 2.0},
        "inner": {"a": 2.0, "b": 20.0, "pieces": 1.0},
    }


def test_a_missing_quantity_keeps_its_total() -> None:
    gauges = Gauges()
    windows = Windows("cpu", gauges)
    with windows("work"):
        gauges.grow(1, 10)
        windows.totals()
        del gauges.now["b"]
        gauges.now["a"] += 1
    assert windows.totals() == {"work": {"a": 2.0, "b": 10.0, "pieces": 1.0}}


def test_replaced_totals_continue_to_increase() -> None:
    gauges = Gauges()
    windows = Windows("cpu", gauges)
    windows.replace({"work": {"a": 7.0, "pieces": 3.0}})
    with windows("work"):
        gauges.grow(1, 10)
    assert windows.totals() == {"work": {"a": 8.0, "b": 10.0, "pieces": 4.0}}
    with pytest.raises(BadValue, match="a of 'work'"):
        windows.replace({"work": {"a": -1.0}})
    with pytest.raises(BadValue, match="another version"):
        windows.replace({"work": 3.5})  # type: ignore[dict-item]
