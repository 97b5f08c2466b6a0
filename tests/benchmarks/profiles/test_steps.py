"""Calls and time of a training step are those of the step, and a moved step is found or refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

import bpfree
from benchmarks.profiles import _default_arms as arms
from benchmarks.profiles import step_time
from benchmarks.robustness.same_bits import ROOT


def test_the_calls_of_a_step_are_named_functions_of_the_package_and_the_same_each_time() -> None:
    calls = arms.calls("mono_forward")
    kind, name = arms.find_step()
    assert calls[0] == (
        f"{kind.__module__.removeprefix('bpfree.').replace('.', '/')}.py",
        f"{kind.__name__}.{name}",
    )
    assert not any("<lambda>" in function or "comp>" in function for _, function in calls)
    assert arms.calls("mono_forward") == calls
    assert len(arms.calls("mono_forward greedy")) < len(calls)


def test_one_more_call_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(arms.calls("mono_forward"))
    kind, name = arms.find_step()
    step: Callable[..., Any] = getattr(kind, name)

    def longer(*args: Any) -> Any:
        bpfree.nn.mlp([1, 1, 2])
        return step(*args)

    added = len(calls_of(lambda: bpfree.nn.mlp([1, 1, 2])))
    monkeypatch.setattr(kind, name, longer)
    assert added > 0
    assert len(arms.calls("mono_forward")) == before + added


def calls_of(function: Callable[[], object]) -> list[str]:
    found: list[str] = []

    def record(frame: Any, event: str, _: object) -> None:
        if event == "call" and "/bpfree/" in frame.f_code.co_filename and "<" not in frame.f_code.co_name:
            found.append(frame.f_code.co_qualname)

    sys.setprofile(record)
    try:
        function()
    finally:
        sys.setprofile(None)
    return found


def test_the_step_is_found_after_a_move_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    known = arms.find_step()
    monkeypatch.setattr(arms, "STEPS", (("bpfree.gone", "Loop", "step"), *arms.STEPS))
    assert arms.find_step() == known
    monkeypatch.setattr(arms, "STEPS", (("bpfree.gone", "Loop", "step"), ("bpfree", "Trainer", "gone")))
    with pytest.raises(SystemExit, match="no method of STEPS exists"):
        arms.find_step()


def test_ratios_are_taken_within_a_round() -> None:
    old = [[1.0, 2.0], [10.0, 20.0], [3.0, 4.0]] * 3
    figures = step_time.compare(old, [[0.5 * a, 2.0 * b] for a, b in old])
    assert figures["clock"] == {"ratio": 0.5, "interval": (0.5, 0.5)}
    assert figures["processor"] == {"ratio": 2.0, "interval": (2.0, 2.0)}


def test_a_worker_times_the_package_of_its_tree() -> None:
    worker = step_time.Worker(ROOT)
    try:
        clock, processor = worker.time("mono_forward")
    finally:
        worker.close()
    assert 0 < processor < 1
    assert clock > 0
    assert worker.process.returncode == 0
