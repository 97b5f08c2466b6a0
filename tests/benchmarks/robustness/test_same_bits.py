"""The comparison of two revisions sees a changed bit, and nothing in a renamed parameter."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.robustness import _runs
from benchmarks.robustness.same_bits import ROOT, collect, compare, difference
from tests.workers import run

RUN = "mono_forward, analytic"
OUTCOME: dict[str, Any] = {
    "losses": [["0x1p+0"], ["0x1p-1"]],
    "weights": {"a": "11", "b": "22"},
    "predictions": "33",
    "accuracy": 0.5,
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"losses": [["0x1p+0"], ["0x1.1p-1"]]}, "losses from epoch 2 on"),
        ({"losses": [["0x1p+0"]]}, "losses from epoch 2 on"),
        ({"weights": {"a": "11", "b": "23"}}, "1 of 2 weights (b), 2 before"),
        ({"weights": {"a": "11"}}, "0 of 1 weights (), 2 before"),
        ({"predictions": "34"}, "predictions"),
        ({"accuracy": 0.25}, "accuracy"),
    ],
)
def test_each_part_of_an_outcome_is_compared(change: dict[str, Any], words: str) -> None:
    assert difference(OUTCOME, OUTCOME | change) == words


def test_a_renamed_parameter_is_the_same_parameter() -> None:
    assert not difference(OUTCOME, OUTCOME | {"weights": {"other": "22", "a": "11"}})


def test_a_refusal_by_one_and_a_crash_are_differences() -> None:
    refused, crashed = {"refused": "BadValue", "message": "no"}, {"crashed": "KeyError", "message": "k"}
    assert not difference(refused, refused | {"message": "no, in other words"})
    assert difference(OUTCOME, refused) == "only new refuses: no"
    assert difference(crashed, crashed) == "old crashed: k; new crashed: k"


def test_a_run_that_one_revision_lacks_is_a_difference() -> None:
    assert compare({"a": OUTCOME}, {"a": OUTCOME, "b": OUTCOME}) == {"b": "only in new"}


def unchanged(folder: Path) -> dict[str, Any]:
    (one,) = (one for one in _runs.runs() if one.name == RUN)
    return _runs.outcome(one, folder)


def test_a_changed_optimizer_is_seen(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "bpfree", tmp_path / "bpfree", ignore=shutil.ignore_patterns("__pycache__"))
    settings = tmp_path / "bpfree" / "trainers" / "settings.py"
    source = settings.read_text()
    settings.write_text(source.replace("kind(groups, lr,", "kind(groups, lr * (1.001),"))
    assert settings.read_text() != source
    # The old revision is this one: a process forked from the server has its source, and need not import it.
    (outcome,) = run(tmp_path, 1, unchanged, tmp_path)
    old, new = {RUN: outcome}, collect(tmp_path, RUN, workers=1)
    assert compare(old, old) == {}
    words = compare(old, new)[RUN]
    assert "losses from epoch 1 on" in words
    assert "weights" in words
