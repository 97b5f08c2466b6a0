"""An arm's study: its trials are taken, kept alive, judged, and taken again when their worker is gone."""

from __future__ import annotations

import json
import os
import socket
import time
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import optuna
import psutil
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, Trial, TrialState

from bpfree._errors import BadValue
from bpfree.bench.metric import RowMetric, describe, metric_in
from bpfree.tune.plan import Arm, Plan
from bpfree.tune.sampling import HANDED_BACK, distributions, make_pruner, make_sampler

#: Seconds between two signs of life of a trial, and without any after which its worker counts as gone.
BEAT_S, GRACE_S = 10.0, 60.0

#: What a trial that is tried again takes over from its first attempt: the seeds that are through.
KEPT = ("cells", "deaths")

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


class ArmStudy:
    """The trials of one arm, shared by all commands that work on it.

    A trial counts if it is complete or pruned. One whose worker is gone fails, and waits under a new number
    with the same settings, its finished seeds and its reports.

    Args:
        plan: The search.
        arm: The arm.
        storage: Where its study is.
        trials: How many trials are to be finished in all.

    Raises:
        BadValue: If the storage has a study of this name with other settings.
    """

    def __init__(self, plan: Plan, arm: Arm, storage: BaseStorage, trials: int) -> None:
        self.arm, self.trials = arm, trials
        self.wanted = distributions(arm, plan.tune.sampler == "grid")
        name, sampler, pruner = f"{plan.name}/{arm.label}", make_sampler(plan, arm), make_pruner(plan, arm)
        try:
            self.study = optuna.create_study(
                storage=storage, sampler=sampler, pruner=pruner, study_name=name, direction=arm.direction
            )
        except DuplicatedStudyError:
            self.study = optuna.load_study(study_name=name, storage=storage, sampler=sampler, pruner=pruner)
        self._check(json.loads(json.dumps(plan.identity(arm))))
        self.seen: dict[int, tuple[Any, float]] = {}

    def _check(self, identity: dict[str, Any]) -> None:
        kept = self.study.user_attrs.get("identity")
        if kept is None:
            self.study.set_user_attr("identity", identity)
            return
        for key, value in identity.items():
            if kept.get(key) != value:
                raise BadValue(
                    f"study {self.study.study_name!r}: was begun with {key} = {kept.get(key)}, now it is "
                    f"{value}: go on with the same config, or name another --out"
                )

    # ---- what there is ---------------------------------------------------------------------------------

    def all(self) -> list[FrozenTrial]:
        """Every trial, failed attempts included."""
        return self.study.get_trials(deepcopy=False)

    def finished(self) -> int:
        """How many trials count."""
        return sum(trial.state in FINISHED for trial in self.all())

    def open(self) -> int:
        """How many trials nobody has taken yet, a waiting one included."""
        trials = self.all()
        taken = sum(t.state in (*FINISHED, TrialState.RUNNING) for t in trials)
        return max(self.trials - taken, 0)

    def outcomes(self) -> dict[str, dict[str, Any]]:
        """What is known of every cell that is through, by its id."""
        return {k: v for trial in self.all() for k, v in trial.user_attrs.get("cells", {}).items()}

    def metric(self) -> RowMetric:
        """The metric of the trials; the trainer's default until one is through."""
        outcome = next(iter(self.outcomes().values()), None)
        return metric_in(describe(self.arm.metric) if outcome is None else outcome)

    # ---- taking and giving back ------------------------------------------------------------------------

    def take(self) -> Trial | None:
        """The next trial for this process; None if all are taken.

        However many ask at once, of all that were not given up only the first ``trials`` are taken: a number
        beyond them is handed back.
        """
        if not self.open():
            return None
        trial = self.study.ask(self.wanted)
        before = [t for t in self.all() if t.number < trial.number and t.state != TrialState.FAIL]
        if len(before) >= self.trials:
            trial.set_user_attr(HANDED_BACK, True)
            self.study.tell(trial, state=TrialState.FAIL)
            return None
        self.beat(trial, 0.0)
        return trial

    def beat(self, trial: Trial, seconds: float) -> None:
        """Give a sign of life, and note how long a trial has been running.

        Raises:
            UpdateFinishedTrialError: If the trial was taken for dead meanwhile.
        """
        trial.set_user_attr("pulse", {**_here(), "at": time.time(), "seconds": round(seconds, 3)})

    def reap(self, own: set[int]) -> None:
        """Have the trials of workers that are gone tried again."""
        for trial in self.all():
            if trial.state == TrialState.RUNNING and trial.number not in own and self._gone(trial):
                self.again(trial.number)

    def again(self, number: int) -> None:
        """Give a running trial up, and put one with the same settings into the queue."""
        try:
            self.study.tell(number, state=TrialState.FAIL)
        except (UpdateFinishedTrialError, ValueError):
            return  # somebody else was quicker: a trial fails once
        trial = self.study.get_trials()[number]
        trial.user_attrs = {k: v for k, v in trial.user_attrs.items() if k in KEPT}
        if trial.params.keys() != self.wanted.keys():
            # Its worker was gone before all settings were drawn: they are drawn anew, and are the same.
            trial.params, trial.distributions = {}, {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)(self.study, trial)

    def _gone(self, trial: FrozenTrial) -> bool:
        """Whether a trial's worker is known to be dead, or has given no sign for long.

        The waiting is measured by this process's own clock: clocks of machines differ.
        """
        pulse = trial.user_attrs.get("pulse")
        if pulse is not None and pulse["host"] == _here()["host"] and not _alive(pulse["pid"], pulse["born"]):
            return True
        now = time.monotonic()
        last, since = self.seen.get(trial.number, (None, now))
        if trial.number not in self.seen or last != pulse:
            self.seen[trial.number] = (pulse, now)
            return False
        return now - since > GRACE_S


@cache
def _here() -> Mapping[str, Any]:
    """This process: machine since its last start, process id as it is known there, and the time of birth."""
    parts = [socket.gethostname()]
    try:
        parts += [
            Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            os.readlink("/proc/self/ns/pid"),
        ]
    except OSError:
        parts.append(str(int(psutil.boot_time())))
    return {"host": "/".join(parts), "pid": os.getpid(), "born": psutil.Process().create_time()}


def _alive(pid: int, born: float) -> bool:
    try:
        process = psutil.Process(pid)
        # Times of birth are told to the tick only, from a time of boot that may be set right meanwhile.
        return bool(abs(process.create_time() - born) < 2 and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
