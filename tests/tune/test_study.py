"""Several workers, some of which are killed: N trials in total, none lost, none twice."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
from optuna.trial import TrialState

from bpfree import BadValue
from bpfree.tune import study as module
from tests.tune.common import arm_study, open_at, plan

KINDS = ["journal", "sqlite"]


def dead_process() -> dict[str, Any]:
    """What a process that has ended would have said of itself."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    born = psutil.Process(process.pid).create_time()
    process.communicate(b"\n")
    return {**module._here(), "pid": process.pid, "born": born}


@pytest.mark.parametrize("kind", KINDS)
def test_many_at_once_take_n_in_all(kind: str, tmp_path: Path) -> None:
    made, trials = plan(sampler="random"), 12
    open_at(kind, tmp_path)
    taken: list[int] = []

    def work() -> None:
        own = arm_study(made, open_at(kind, tmp_path), trials)
        while own.open():
            trial = own.take()
            if trial is not None:
                taken.append(trial.number)
                own.study.tell(trial, 0.5)

    arm_study(made, open_at(kind, tmp_path), trials)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    study = arm_study(made, open_at(kind, tmp_path), trials)
    assert study.finished() == trials == len(taken) == len(set(taken))
    values = [t.params["lr"] for t in study.all() if t.state == TrialState.COMPLETE]
    assert len(set(values)) == trials


@pytest.mark.parametrize("kind", KINDS)
def test_the_trial_of_an_ended_worker_is_repeated_with_its_outcomes(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan()
    dead = arm_study(made, open_at(kind, tmp_path), 3)
    lost = dead.take()
    assert lost is not None
    lost.report(0.25, 1)
    lost.set_user_attr("cells", {"an id": {"seed": 100, "val_accuracy": 0.5}})
    lost.set_user_attr("pulse", {**dead_process(), "at": 0.0, "seconds": 7.0})
    other = arm_study(made, open_at(kind, tmp_path), 3)
    other.reap(set())
    found = [other.take() for _ in range(4)]
    assert found[3] is None
    again = found[0]
    assert again is not None
    assert again.params == lost.params
    assert again.user_attrs["cells"] == lost.user_attrs["cells"]
    assert other.all()[again.number].intermediate_values == {1: 0.25}
    assert other.all()[lost.number].state == TrialState.FAIL
    for trial in found[:3]:
        assert trial is not None
        other.study.tell(trial, 0.5)
    assert other.finished() == 3
    dead.again(lost.number)  # who was taken for dead cannot put its trial there once more
    assert len(other.all()) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_living_workers_trial_is_left_alone(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan()
    ours, other = (arm_study(made, open_at(kind, tmp_path), 2) for _ in range(2))
    trial = ours.take()
    assert trial is not None
    other.reap(set())
    assert other.all()[trial.number].state == TrialState.RUNNING
    assert other.open() == 1


def test_a_worker_without_heartbeats_counts_as_ended_after_the_grace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan()
    ours, other = (arm_study(made, open_at("journal", tmp_path), 1) for _ in range(2))
    trial = ours.take()
    assert trial is not None
    pulse = {"host": "elsewhere", "pid": os.getpid(), "born": 0.0, "seconds": 0.0}
    trial.set_user_attr("pulse", {**pulse, "at": -5.0})
    now = 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)

    def state_after(seconds: float) -> TrialState:
        nonlocal now
        now += seconds
        other.reap(set())
        return other.all()[trial.number].state

    assert state_after(0) == TrialState.RUNNING
    assert state_after(module.GRACE_S - 1) == TrialState.RUNNING
    trial.set_user_attr("pulse", {**pulse, "at": -4.0})  # a sign of life, by a clock that is far off
    assert state_after(2) == TrialState.RUNNING
    assert state_after(module.GRACE_S - 1) == TrialState.RUNNING
    assert state_after(2) == TrialState.FAIL
    assert other.open() == 1


def test_a_study_with_other_settings_is_refused(tmp_path: Path) -> None:
    storage = open_at("journal", tmp_path)
    arm_study(plan(), storage, 2)
    arm_study(plan(), storage, 5)
    with pytest.raises(BadValue, match="begun with seeds"):
        arm_study(plan(seeds=[100, 101]), storage, 2)
    with pytest.raises(BadValue, match="begun with space"):
        arm_study(plan(space={"lr": {"low": 1e-3}}), storage, 2)


def test_an_incomplete_line_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    made = plan()
    first = arm_study(made, open_at("journal", tmp_path), 2).take()
    assert first is not None
    with open(tmp_path / "journal.log", "a") as file:
        file.write('{"op_code": 4, "worker')
    second = arm_study(made, open_at("journal", tmp_path), 2).take()
    assert second is not None
    assert [t.number for t in arm_study(made, open_at("journal", tmp_path), 2).all()] == [0, 1]
