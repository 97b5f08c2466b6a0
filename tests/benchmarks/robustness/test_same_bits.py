"""The comparison of two revisions sees a changed bit, and nothing in a renamed parameter."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.robustness import _runs
from benchmarks.robustness.same_bits import ROOT, collect, compare, difference
from bpfree import BadValue
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


@pytest.mark.parametrize("name", _runs.NAMES)
def test_every_public_name_exists(name: str) -> None:
    assert _runs.public(name)


def test_a_name_that_no_revision_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_runs.NAMES, "Graph", ("bpfree.gone:Graph", "bpfree.nn:Gone"))
    with pytest.raises(SystemExit, match="add the new name to NAMES"):
        _runs.public("Graph")


def test_a_renamed_setting_is_tried_by_its_new_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_runs, "SETTINGS", {"learning_rate": "lr"})
    run = _runs.Run("by an old key", "mono_forward", settings={"learning_rate": 0.5})
    assert _runs._trainer(run).settings.lr == 0.5
    with pytest.raises(BadValue, match="unknown_key"):
        _runs._trainer(replace(run, settings={"unknown_key": 1}))


def test_a_package_from_another_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="instead of this folder"):
        _runs.main(tmp_path, RUN)


def unchanged(folder: Path) -> dict[str, Any]:
    (one,) = (one for one in _runs.runs() if one.name == RUN)
    return _runs.outcome(one, folder)


def test_a_changed_optimizer_is_seen(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "bpfree", tmp_path / "bpfree", ignore=shutil.ignore_patterns("__pycache__"))
    line = "kind(groups, lr,"
    (settings,) = (path for path in (tmp_path / "bpfree").rglob("*.py") if line in path.read_text())
    settings.write_text(settings.read_text().replace(line, "kind(groups, lr * (1.001),"))
    # The old revision is this one: a process forked from the server has its source, and need not import it.
    (outcome,) = run(tmp_path, 1, unchanged, tmp_path)
    old, new = {RUN: outcome}, collect(tmp_path, RUN, workers=1)
    assert compare(old, old) == {}
    words = compare(old, new)[RUN]
    assert "losses from epoch 1 on" in words
    assert "weights" in words
