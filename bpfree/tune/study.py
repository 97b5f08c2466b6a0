"""An arm's study: its trials are taken by workers, and taken again if their worker has ended."""

from __future__ import annotations

import json
import os
import socket
import time
import warnings
from functools import cache
from pathlib import Path

import optuna
import psutil
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, Trial, TrialState

from bpfree._errors import BadValue
from bpfree.bench.files import Mapped, Values
from bpfree.bench.metric import RowMetric, describe, metric_in
from bpfree.tune.plan import Plan, TunedArm
from bpfree.tune.sampling import HANDED_BACK, distributions, make_pruner, make_sampler

#: Seconds between two heartbeats of a trial, and seconds without one after which its worker counts as ended.
HEARTBEAT_S, GRACE_S = 10.0, 60.0

#: Attributes that a repeated trial inherits from its first attempt.
INHERITED = ("cells", "deaths")

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


class ArmStudy:
    """The trials of one arm, shared by all commands that work on it.

    A trial counts if it is complete or pruned. If its worker ends, it fails, and waits under a new number
    with the same settings, its finished seeds and its reports.

    Args:
        plan: The plan of the search.
        arm: The arm.
        storage: The storage of its study.
        trials: Number of trials to finish, over all commands.

    Raises:
        BadValue: If the storage has a study with this name and other settings.
    """

    def __init__(self, plan: Plan, arm: TunedArm, storage: BaseStorage, trials: int) -> None:
        self.arm, self.trials = arm, trials
        self.distributions = distributions(arm, plan.tune.sampler == "grid")
        name, sampler, pruner = f"{plan.name}/{arm.label}", make_sampler(plan, arm), make_pruner(plan, arm)
        try:
            self.study = optuna.create_study(
                storage=storage, sampler=sampler, pruner=pruner, study_name=name, direction=arm.direction
            )
        except DuplicatedStudyError:
            self.study = optuna.load_study(study_name=name, storage=storage, sampler=sampler, pruner=pruner)
        self._check(json.loads(json.dumps(plan.identity(arm))))
        self.seen: dict[int, tuple[object, float]] = {}

    def _check(self, identity: Mapped) -> None:
        stored = self.study.user_attrs.get("identity")
        if stored is None:
            self.study.set_user_attr("identity", identity)
            return
        for key, value in identity.items():
            if stored.get(key) != value:
                raise BadValue(
                    f"study {self.study.study_name!r}: was begun with {key} = {stored.get(key)}, now it is "
                    f"{value}: continue with the same config, or give another --out"
                )

    # ---- trials --------------------------------------------------------------------------------------

    def all(self) -> list[FrozenTrial]:
        """Every trial, failed attempts included."""
        return self.study.get_trials(deepcopy=False)

    def finished(self) -> int:
        """The number of finished trials."""
        return sum(trial.state in FINISHED for trial in self.all())

    def open(self) -> int:
        """The number of trials that no worker has taken yet, with the waiting ones."""
        trials = self.all()
        taken = sum(t.state in (*FINISHED, TrialState.RUNNING) for t in trials)
        return max(self.trials - taken, 0)

    def outcomes(self) -> dict[str, Mapped]:
        """The outcomes of all finished cells, by id."""
        return {k: v for trial in self.all() for k, v in trial.user_attrs.get("cells", {}).items()}

    def metric(self) -> RowMetric:
        """The metric of the trials; the trainer's default until one is finished."""
        outcome = next(iter(self.outcomes().values()), None)
        return metric_in(describe(self.arm.metric) if outcome is None else outcome)

    # ---- taking and giving back ------------------------------------------------------------------------

    def take(self) -> Trial | None:
        """The next trial for this process; None if all are taken.

        If several commands take trials at once, only the first ``trials`` of those that did not fail are
        used; a later one is returned.
        """
        if not self.open():
            return None
        trial = self.study.ask(self.distributions)
        before = [t for t in self.all() if t.number < trial.number and t.state != TrialState.FAIL]
        if len(before) >= self.trials:
            trial.set_user_attr(HANDED_BACK, True)
            self.study.tell(trial, state=TrialState.FAIL)
            return None
        self.heartbeat(trial, 0.0)
        return trial

    def heartbeat(self, trial: Trial, seconds: float) -> None:
        """Store the time, and how long a trial has been running.

        Raises:
            UpdateFinishedTrialError: If the trial was given to another worker meanwhile.
        """
        trial.set_user_attr("pulse", {**_here(), "at": time.time(), "seconds": round(seconds, 3)})

    def reap(self, own_numbers: set[int]) -> None:
        """Put the trials of ended workers into the queue again."""
        for trial in self.all():
            if trial.state == TrialState.RUNNING and trial.number not in own_numbers and self._gone(trial):
                self.again(trial.number)

    def again(self, number: int) -> None:
        """Fail a running trial, and put one with the same settings into the queue."""
        try:
            self.study.tell(number, state=TrialState.FAIL)
        except (UpdateFinishedTrialError, ValueError):
            return  # another command was faster: a trial fails once
        trial = self.study.get_trials()[number]
        trial.user_attrs = {k: v for k, v in trial.user_attrs.items() if k in INHERITED}
        if trial.params.keys() != self.distributions.keys():
            # Its worker ended before all settings were sampled: they are sampled again, with the same result.
            trial.params, trial.distributions = {}, {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)(self.study, trial)

    def _gone(self, trial: FrozenTrial) -> bool:
        """Whether a trial's worker has ended, or has sent no heartbeat for `GRACE_S` seconds.

        The seconds are measured by the clock of this process, as clocks of machines differ.
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
def _here() -> Values:
    """This process: the machine since its last boot, the process id, and its creation time."""
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
        # Creation times are rounded to ticks, and relative to a boot time that may be corrected meanwhile.
        return bool(abs(process.create_time() - born) < 2 and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
