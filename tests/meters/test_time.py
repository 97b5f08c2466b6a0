"""Stopwatch arithmetic on a simulated clock."""

import pytest
import torch

import bpfree.meters.time as meter_time
from bpfree._errors import BadValue
from bpfree.meters import Stopwatch, synchronize


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(meter_time, "perf_counter", clock)
    return clock


def test_time_outside_windows_is_not_counted_and_segments_add_up(clock: Clock) -> None:
    watch = Stopwatch()
    clock.now += 7
    with watch("train"):
        clock.now += 2
    clock.now += 50
    with watch("train"):
        clock.now += 3
    clock.now += 9
    assert watch.state() == {"train": 5.0}


def test_inner_window_is_not_counted_in_the_outer(clock: Clock) -> None:
    watch = Stopwatch()
    with watch("train"):
        clock.now += 1
        with watch("eval"):
            clock.now += 10
            with watch("io"):
                clock.now += 100
            clock.now += 20
        clock.now += 2
    assert watch.state() == {"train": 3.0, "eval": 30.0, "io": 100.0}


def test_a_resumed_stopwatch_continues_from_the_saved_seconds(clock: Clock) -> None:
    first = Stopwatch()
    with first("train"):
        clock.now += 4
    saved = first.state()
    clock.now += 1000  # the gap between the two runs
    second = Stopwatch()
    second.load(saved)
    with second("train"):
        clock.now += 1
    assert second.state() == {"train": 5.0}
    assert saved == {"train": 4.0}  # the saved totals are a copy


def test_load_replaces_the_totals(clock: Clock) -> None:
    watch = Stopwatch()
    with watch("warmup"):
        clock.now += 4
    watch.load({"train": 2.0})
    assert watch.state() == {"train": 2.0}


def test_state_inside_an_open_window_includes_it_once(clock: Clock) -> None:
    watch = Stopwatch()
    with watch("train"):
        clock.now += 4
        assert watch.state() == {"train": 4.0}
        clock.now += 1
    assert watch.state() == {"train": 5.0}


@pytest.mark.parametrize("between", [[], ["eval"]])
def test_same_name_inside_itself_is_refused(between: list[str], clock: Clock) -> None:
    watch = Stopwatch()
    with watch("train"):
        clock.now += 1
        if between:
            with watch("eval"), pytest.raises(BadValue, match="already open"), watch("train"):
                pass
        else:
            with pytest.raises(BadValue, match="already open"), watch("train"):
                pass
        clock.now += 1
    assert watch.state()["train"] == 2.0


def test_window_left_by_an_exception_counts_and_closes(clock: Clock) -> None:
    watch = Stopwatch()
    with pytest.raises(KeyError), watch("train"):
        clock.now += 3
        raise KeyError
    with watch("train"):
        clock.now += 1
    assert watch.state() == {"train": 4.0}


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_impossible_totals_are_refused(seconds: float) -> None:
    watch = Stopwatch()
    with pytest.raises(BadValue, match="train"):
        watch.load({"train": seconds})
    assert watch.state() == {}


def test_load_inside_a_window_is_refused() -> None:
    watch = Stopwatch()
    with watch("train"), pytest.raises(BadValue, match="close every window"):
        watch.load({})


def test_device_is_synchronized_before_each_reading_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def tick() -> float:
        events.append("clock")
        return float(len(events))

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append(f"sync {device}"))
    monkeypatch.setattr(meter_time, "perf_counter", tick)
    with Stopwatch("cuda:1")("train"):
        events.append("work")
    assert events == ["sync cuda:1", "clock", "work", "sync cuda:1", "clock"]


def test_work_still_queued_at_the_end_is_charged_to_its_window(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    queued = [0.0]

    def wait(device: torch.device) -> None:
        clock.now += queued[0]
        queued[0] = 0.0

    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    watch = Stopwatch("cuda")
    queued[0] = 5.0  # queued before the window, so not counted
    with watch("train"):
        queued[0] = 3.0
    assert watch.state() == {"train": 3.0}


def test_synchronize_refuses_unknown_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: calls.append("mps"))
    synchronize("cpu")
    synchronize("mps")
    assert calls == ["mps"]
    with pytest.raises(BadValue, match="meta"):
        synchronize("meta")


def test_the_real_clock_increases() -> None:
    watch = Stopwatch()
    with watch("train"):
        torch.ones(100, 100).mm(torch.ones(100, 100))
    assert 0 < watch.state()["train"] < 60
