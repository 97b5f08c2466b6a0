"""Some of the cases, and the result file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.robustness import _case, never_silent
from benchmarks.robustness._verdict import run_case
from bpfree.trainers import TRAINERS

CASES = never_silent.all_cases()

#: Quick cases of different kinds.
SOME = [
    "mono_forward / mlp / pair of tensors",
    "mono_forward / mlp / NaN in one sample",
    "mono_forward / mlp / labels: from 1",
    "mono_forward / conv3d / plain",
    "backprop / mlp / float64",
    "backprop_ds / conv1d / plain",
    "mf_joint / mlp / plain",
    "dfa / conv2d / plain",
    "random_features / mlp / plain",
    "cafo / mlp / closed form against least squares",
    "counter_current / mlp / plain",
    "local / mlp / plain",
    "mono_forward / mlp / fit: epochs = 0",
    "backprop_gnn / gcn / evaluate: the training graph",
    "hop_ridge / gcn / evaluate: the training graph",
    "physical_ridge / device / against least squares on the answers",
    "physical / device / answers: a row too few",
]


@pytest.mark.parametrize("name", SOME)
def test_a_case_comes_to_what_it_declares(name: str) -> None:
    found = run_case(next(case for case in CASES if case.name == name))
    assert found.passed, never_silent.told(found)


def test_cases_have_names_of_their_own() -> None:
    twice = [name for name, n in Counter(case.name for case in CASES).items() if n > 1]
    assert not twice
    assert len(CASES) >= 220


def test_every_trainer_has_cases() -> None:
    assert set(TRAINERS) <= {case.trainer for case in CASES}


def test_no_case_accepts_a_false_result() -> None:
    for case in CASES:
        assert case.expected <= _case.ANY


def test_the_result_file_tells_each_outcome(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    assert never_silent.main(["--only", "mono_forward / mlp / labels: int*", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["passed"] and found["outcomes"] == {"right": found["cases"]}
    assert {row["trainer"] for row in found["table"]} == {"mono_forward"}
    assert "torch" in found["env"] and "not as declared: 0" in capsys.readouterr().out


def test_a_case_that_fails_makes_the_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = _case.Case("fake", "net", "wrong", _case.RIGHT, lambda watch: "predict differs")
    monkeypatch.setattr(never_silent, "all_cases", lambda: [case])
    assert never_silent.main(["--only", "fake"]) == 1
    assert "WRONG    fake / net / wrong" in capsys.readouterr().out
