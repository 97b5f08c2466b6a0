"""Whole searches: counting, killing, pruning, reproducing, and unused test data."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial
from ruamel.yaml import YAML

from bpfree.bench.__main__ import main as bench
from bpfree.bench.files import read_yaml
from bpfree.bench.results import Results
from bpfree.tune.__main__ import main
from bpfree.tune.plan import make_plan
from bpfree.tune.study import ArmStudy
from bpfree.tune.worker import TrialFailed, Worker
from tests.helpers import heeding_interrupts
from tests.tune.common import arm_study, config, open_at, plan
from tests.tune.test_study import dead_process
from tests.workers import start_command

#: In a cell's process, whatever is asked of the test data ends it.
POISON = """
import multiprocessing
import bpfree.bench.sections as sections

class Poison:
    def __getattribute__(self, name):
        raise RuntimeError("the test data were touched")

if multiprocessing.parent_process() is not None:
    honest = sections.load
    sections.load = lambda *a, **k: honest(*a, **k)._replace(test=Poison())
"""

#: A rule that ends its process once, or raises, or never converges.
RULE = """
import os, pathlib, signal, bpfree
from torch import nn

@bpfree.register_loss("odd")
class Odd(bpfree.LocalLoss):
    def build(self, output, n_classes):
        self.head = nn.Linear(output[0].numel(), n_classes)
    def scores(self, output):
        return self.head(output)
    def forward(self, output, target, lesson=None):
        flag = pathlib.Path(FLAG)
        match HOW if self.training else None:
            case "dies once":
                if not flag.exists():
                    flag.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            case "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            case "raises":
                if not flag.exists():
                    raise RuntimeError("this rule cannot work")
            case "diverges":
                return self.scores(output).sum() * float("nan")
        return nn.functional.cross_entropy(self.scores(output), target)
"""


def write(content: dict[str, Any], folder: Path) -> Path:
    path = folder / "config.yaml"
    YAML(typ="safe", pure=True).dump(content, path)
    return path


def odd(how: str, folder: Path) -> dict[str, Any]:
    """The small search with the rule above as its only arm."""
    rule = folder / "rule.py"
    rule.write_text(RULE.replace("FLAG", repr(str(folder / "flag"))).replace("HOW", repr(how)))
    found = config()
    found |= {"trainer": {"id": "local", "loss": "odd"}, "controls": [], "plugins": [str(rule)]}
    found["net"] = {"name": "mlp", "hidden": [16, 16]}
    return found


def work(content: dict[str, Any], folder: Path, trials: int, arm: int = 0) -> tuple[ArmStudy, bool]:
    study = arm_study(make_plan(content), open_at("journal", folder), trials, arm)
    return study, Worker([study], folder).run()


def test_the_bench_reproduces_the_winner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    poison, out = tmp_path / "poison.py", tmp_path / "out"
    poison.write_text(POISON)
    searched = {"only": ["lr", "weight_decay"], "seeds": [100, 101], "pruner": "none"}
    path = write({**config(**searched), "plugins": [str(poison)]}, tmp_path)
    command = [str(path), "--trials", "2", "--workers", "2", "--out", str(out)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    assert [(a["label"], a["trials"], a["complete"]) for a in summary["arms"]] == [
        ("mono_forward", 2, 2),
        ("backprop", 2, 2),
    ]
    for arm in summary["arms"]:
        values = {t["number"]: t["value"] for t in arm["history"]}
        assert arm["best"]["value"] == max(values.values())
        mean = sum(cell["val_accuracy"] for cell in arm["best"]["cells"].values()) / 2
        assert arm["best"]["value"] == mean
        assert f"{100 * mean:.2f}" in printed
        assert arm["seconds"] == pytest.approx(sum(t["seconds"] for t in arm["history"]), abs=1e-3)
        for name in arm["plots"]:
            assert (out / name).read_text().rstrip().endswith("</svg>")
    assert not list((out / "cells").iterdir())

    # The bench touches the test data, so the poison is live; without it, the same bits.
    seeds = ["--set", "seeds=[100, 101]"]
    winner = ["run", str(out / "winner.yaml"), *seeds]
    assert bench([*winner, "--out", str(tmp_path / "poisoned")]) == 1
    assert "the test data were touched" in Results(tmp_path / "poisoned").read()[0]["reason"]
    assert bench([*winner, "--set", "plugins=[]", "--out", str(tmp_path / "bench")]) == 0
    rows = Results(tmp_path / "bench").read()
    for arm in summary["arms"]:
        own = [row for row in rows if row["arm"] == arm["label"]]
        assert {row["seed"]: row["metrics"]["val_accuracy"] for row in own} == {
            cell["seed"]: cell["val_accuracy"] for cell in arm["best"]["cells"].values()
        }
        assert {json.dumps(row["tuning"]) for row in own} == {
            json.dumps({"seconds": arm["seconds"], "trials": 2}, sort_keys=True)
        }
    assert read_yaml(out / "winner.yaml")["seeds"] == [0, 1]

    assert main(command) == 0  # nothing is left to do
    again = json.loads((out / "summary.json").read_text())
    assert [arm["history"] for arm in again["arms"]] == [arm["history"] for arm in summary["arms"]]
    assert main([*command[:2], "3", *command[3:]]) == 0  # more trials go on from those that are there
    more = json.loads((out / "summary.json").read_text())
    for arm in more["arms"]:
        kinds = [name.rpartition("_")[2] for name in arm["plots"]]
        assert kinds == ["history.svg", "slice.svg"]
        assert (arm["importance"], arm["no_importance"]) == ({}, "3 complete trials, at least 10 are needed")
    assert [arm["trials"] for arm in more["arms"]] == [3, 3]
    assert more["arms"][0]["history"][:2] == summary["arms"][0]["history"]


def test_a_killed_process_of_a_trial_is_tried_again(tmp_path: Path) -> None:
    study, done = work(odd("dies once", tmp_path), tmp_path, 3)
    assert done
    states = Counter(t.state for t in study.all())
    assert states == {TrialState.COMPLETE: 3, TrialState.FAIL: 1}
    (lost,) = (t for t in study.all() if t.state == TrialState.FAIL)
    assert sum(t.params == lost.params for t in study.all() if t.state == TrialState.COMPLETE) == 1


def test_a_trial_that_is_always_killed_stops_the_search(tmp_path: Path) -> None:
    with pytest.raises(TrialFailed, match="killed by signal 9"):
        work(odd("dies", tmp_path), tmp_path, 2)


def test_an_error_stops_the_search_and_loses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(odd("raises", tmp_path), tmp_path)
    command = [str(path), "--trials", "2", "--out", str(tmp_path / "out")]
    assert main(command) == 1
    assert "this rule cannot work" in capsys.readouterr().err
    (tmp_path / "flag").touch()  # mended
    assert main(command) == 0
    (arm,) = json.loads((tmp_path / "out" / "summary.json").read_text())["arms"]
    assert (arm["trials"], arm["attempts"]) == (2, 3)


def test_a_setting_that_diverges_counts_and_never_wins(tmp_path: Path) -> None:
    study, done = work(odd("diverges", tmp_path), tmp_path, 2)
    assert done
    assert [t.state for t in study.all()] == [TrialState.PRUNED] * 2
    assert all("became nan" in t.user_attrs["diverged"] for t in study.all())


def test_finished_seeds_are_not_run_again(tmp_path: Path) -> None:
    made = plan(seeds=[100, 101])
    dead = arm_study(made, open_at("journal", tmp_path), 1)
    trial = dead.take()
    assert trial is not None
    first = made.arms[0].with_settings(trial.params)[0]
    trial.set_user_attr("cells", {first.id: {"seed": 100, "val_accuracy": 0.125}})
    trial.set_user_attr("pulse", {**dead_process(), "at": 0.0, "seconds": 0.0})
    study, done = work(config(seeds=[100, 101]), tmp_path, 1)
    assert done
    (again,) = (t for t in study.all() if t.state == TrialState.COMPLETE)
    cells = {c["seed"]: c["val_accuracy"] for c in again.user_attrs["cells"].values()}
    assert cells[100] == 0.125
    assert again.value == (0.125 + cells[101]) / 2


def test_a_trial_that_is_behind_is_stopped_at_the_epoch_that_shows_it(tmp_path: Path) -> None:
    content = config()
    content["fit"] = {"epochs": 100, "batch_size": 64}
    study = arm_study(make_plan(content), open_at("journal", tmp_path), 6)
    for _ in range(5):  # nothing can be better than these
        perfect = dict.fromkeys(range(1, 101), 1.0)
        study.study.add_trial(
            create_trial(
                params={"lr": 0.01},
                distributions=study.distributions,
                value=1.0,
                intermediate_values=perfect,
                user_attrs={"cells": {}},
            )
        )
    assert Worker([study], tmp_path).run()
    last = study.all()[-1]
    assert last.state == TrialState.PRUNED
    assert last.last_step == 25  # the first pass after the warm-up of a quarter


def test_a_timeout_is_reported_and_the_search_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write(config(), tmp_path), tmp_path / "out"
    command = [str(path), "--trials", "1", "--out", str(out)]
    assert main([*command, "--timeout", "0"]) == 1
    assert "Not finished" in capsys.readouterr().out
    assert not (out / "winner.yaml").exists()
    assert main(command) == 0
    assert (out / "winner.yaml").exists()


def test_four_workers_on_one_study_and_one_of_two_commands_killed(tmp_path: Path) -> None:
    content = config(pruner="none")
    content["fit"] = {"epochs": 20, "batch_size": 8}
    path, out, trials = write(content, tmp_path), tmp_path / "out", 6
    command = [str(path), "--out", str(out), "--trials", str(trials), "--workers", "2"]
    first, second = (start_command(main, command, tmp_path / f"log{number}") for number in range(2))

    def begun_by(process: BaseProcess, state: TrialState) -> list[FrozenTrial]:
        trials = [trial for study in studies for trial in study.all()]
        return [
            t for t in trials if t.user_attrs.get("pulse", {}).get("pid") == process.pid and t.state == state
        ]

    made, storage = make_plan(content), open_at("journal", out)
    studies = [ArmStudy(made, arm, storage, trials) for arm in made.arms]
    deadline = time.monotonic() + 120
    while not all(begun_by(p, TrialState.RUNNING) for p in (first, second)) and time.monotonic() < deadline:
        time.sleep(0.02)
    second.kill()
    first.join(timeout=300)
    second.join()
    assert first.exitcode == 0, (tmp_path / "log0").read_text()
    lost = begun_by(second, TrialState.FAIL)
    assert lost
    assert not begun_by(first, TrialState.FAIL)
    for study in studies:
        counted = [t for t in study.all() if t.state == TrialState.COMPLETE]
        assert len(counted) == trials == len({t.params["lr"] for t in counted})
        assert {t.state for t in study.all()} <= {TrialState.COMPLETE, TrialState.FAIL}
        for attempt in [t for t in study.all() if t.state == TrialState.FAIL]:
            assert sum(t.params == attempt.params for t in counted) == 1


def test_ctrl_c_stops_quietly_and_returns_the_trials(tmp_path: Path) -> None:
    content = config()
    content["fit"] = {"epochs": 5000, "batch_size": 16}
    path, out = write(content, tmp_path), tmp_path / "out"
    command = [sys.executable, "-m", "bpfree.tune", str(path), "--out", str(out), "--trials", "2"]
    with heeding_interrupts():
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not any(out.glob("cells/*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in printed
    assert "continues from here" in printed
    study = arm_study(make_plan(content), open_at("journal", out), 2)
    assert [t.state for t in study.all()] == [TrialState.FAIL, TrialState.WAITING]
    assert study.all()[0].params == study.all()[1].params
