"""Takes trials, runs each seed in a process of its own, prunes by epoch, and tells the study how it went."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial, TrialState

from bpfree._errors import BpfreeError
from bpfree.bench.cells import Cell
from bpfree.bench.metric import metric_in
from bpfree.bench.results import Row
from bpfree.bench.runner import Running, close, receive, start, start_server
from bpfree.tune import trial as trial_module
from bpfree.tune.storage import turn
from bpfree.tune.study import BEAT_S, ArmStudy

#: Times that a process of one trial may be killed, or run out of memory, before the search stops.
DEATHS = 3

#: Seconds between two looks at trials that others work on.
POLL_S = 0.5


class TrialFailed(BpfreeError):
    """A trial raised an error, which no other setting would mend."""


@dataclass
class Watcher:
    """Who is told how the trials get on."""

    progress: Callable[[ArmStudy, Trial, int], None] = lambda arm, trial, passes: None
    finished: Callable[[ArmStudy, Trial, str], None] = lambda arm, trial, outcome: None


@dataclass
class Job:
    """A trial at work: the seeds that are left, the first of them running."""

    arm: ArmStudy
    trial: Trial
    cells: list[Cell]
    scores: list[float] = field(default_factory=list)
    running: Running | None = None
    begun: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """How long the trial has been at work here."""
        return time.monotonic() - self.begun


class Worker:
    """Works on studies until each has its trials.

    Args:
        studies: The arms, which take turns so that a search that is stopped has spent the same on each.
        folder: Where checkpoints lie; commands on the same folder take trials one after the other.
        jobs: Trials at once.
        checkpoint_s: Seconds between checkpoints within a trial.
        watcher: Who is told.
    """

    def __init__(
        self,
        studies: Sequence[ArmStudy],
        folder: Path,
        jobs: int = 1,
        checkpoint_s: float = 20.0,
        watcher: Watcher | None = None,
    ) -> None:
        self.studies, self.folder, self.slots = studies, folder, jobs
        self.checkpoint_s, self.watcher = checkpoint_s, watcher or Watcher()
        self.jobs: list[Job] = []

    def run(self, timeout: float | None = None) -> bool:
        """Work; returns whether all trials are finished, which they are not where the time was too short.

        However it ends, trials that were begun and not finished can be taken again.

        Args:
            timeout: Seconds after which no more is done.

        Raises:
            BadValue: If a trial cannot do what the config asks of it.
            TrialFailed: If a trial raised an error or its processes were killed again and again.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        beaten = time.monotonic()
        start_server([study.arm.cells[0] for study in self.studies])
        try:
            while deadline is None or time.monotonic() < deadline:
                self._fill()
                if not self.jobs:
                    if all(study.finished() >= study.trials for study in self.studies):
                        return True
                    time.sleep(POLL_S)  # the rest is in the hands of another command, which may die
                    continue
                self._listen(BEAT_S if deadline is None else min(BEAT_S, deadline - time.monotonic()))
                if time.monotonic() - beaten >= BEAT_S:
                    beaten = time.monotonic()
                    self._beat()
        finally:
            for job in list(self.jobs):
                self._give_back(job)
        return all(study.finished() >= study.trials for study in self.studies)

    # ---- taking trials ---------------------------------------------------------------------------------

    def _fill(self) -> None:
        if len(self.jobs) == self.slots:
            return
        with turn(self.folder):
            for study in self.studies:
                study.reap({job.trial.number for job in self.jobs if job.arm is study})
            while len(self.jobs) < self.slots:
                study = max(self.studies, key=ArmStudy.open)
                trial = study.take()
                if trial is None:
                    return
                self._begin(study, trial)

    def _begin(self, study: ArmStudy, trial: Trial) -> None:
        job = Job(study, trial, study.arm.at(trial.params))
        self.jobs.append(job)
        known = study.outcomes()
        for cell in [cell for cell in job.cells if cell.id in known]:
            # Another attempt, or another trial with the same settings, has done it: the same bits again.
            self._keep(job, known[cell.id])
        self._next(job)

    def _next(self, job: Job) -> None:
        """Run the first of the seeds that are left, or tell the mean if there is none."""
        if job.cells:
            folder = self.folder / "cells" / job.cells[0].id
            job.running = start(trial_module.run, job.cells[0], folder, self.checkpoint_s)
            return
        value = sum(job.scores) / len(job.scores)
        self._tell(job, TrialState.COMPLETE, job.arm.metric().text(value), value)

    def _keep(self, job: Job, outcome: dict[str, Any]) -> None:
        cell = next(cell for cell in job.cells if cell.seed == outcome["seed"])
        job.cells.remove(cell)
        job.scores.append(outcome[f"val_{metric_in(outcome).name}"])
        job.trial.set_user_attr("cells", {**job.trial.user_attrs.get("cells", {}), cell.id: outcome})

    # ---- hearing of them -------------------------------------------------------------------------------

    def _listen(self, timeout: float) -> None:
        pipes = {job.running.pipe: job for job in self.jobs if job.running is not None}
        for pipe in wait(list(pipes), timeout=max(timeout, 0)):
            job = pipes[pipe]  # type: ignore[index]
            assert job.running is not None
            row = receive(job.running, lambda cell, passes, value, job=job: self._report(job, passes, value))
            try:
                if row is not None and job in self.jobs:
                    self._result(job, row)
            except UpdateFinishedTrialError:  # this process was taken for dead, and another has the trial now
                self._end(job)

    def _report(self, job: Job, passes: int, value: float) -> None:
        """Note the mean over this seed's newest value and the finished seeds, and prune what is behind."""
        step = job.arm.arm.cells[0].fit.epochs * len(job.scores) + passes
        mean = (sum(job.scores) + value) / (len(job.scores) + 1)
        self.watcher.progress(job.arm, job.trial, step)
        try:
            # A trial that goes on from a checkpoint may repeat what its last attempt has reported.
            if step not in job.arm.study.get_trials(deepcopy=False)[job.trial.number].intermediate_values:
                job.trial.report(mean, step)
        except UpdateFinishedTrialError:
            self._end(job)
            return
        if job.trial.should_prune() and job.running is not None:
            cell = job.running.cell
            self._tell(job, TrialState.PRUNED, f"pruned after {step} passes")
            self._clear(cell)

    def _result(self, job: Job, row: Row) -> None:
        running, job.running = job.running, None
        assert running is not None
        close(running)
        if row["status"] == "ok":
            self._clear(running.cell)
            self._keep(job, {name: value for name, value in row.items() if name != "status"})
            self._next(job)
        elif row["status"] == "diverged":
            self._clear(running.cell)
            job.trial.set_user_attr("diverged", row["reason"])
            self._tell(job, TrialState.PRUNED, "diverged")
        else:
            self._failed(job, row, died=row["status"] == "oom" or bool(running.process.exitcode))

    def _failed(self, job: Job, row: Row, died: bool) -> None:
        deaths = job.trial.user_attrs.get("deaths", 0) + 1
        if not died or deaths >= DEATHS:
            where = f"{job.arm.arm.label}, trial {job.trial.number} with {job.trial.params}"
            raise TrialFailed(
                f"{where}: {row['reason'].strip()}\n"
                "the other trials are kept: the same command goes on when this is mended"
            )
        job.trial.set_user_attr("deaths", deaths)
        self._give_back(job)
        self.watcher.finished(job.arm, job.trial, f"to be tried again: {row['reason']}")

    # ---- ending them -----------------------------------------------------------------------------------

    def _tell(self, job: Job, state: TrialState, outcome: str, value: float | None = None) -> None:
        self._end(job)
        try:
            job.arm.beat(job.trial, job.seconds)
            job.arm.study.tell(job.trial, value, state)
        except (UpdateFinishedTrialError, ValueError):
            return  # as in _listen
        self.watcher.finished(job.arm, job.trial, outcome)

    def _give_back(self, job: Job) -> None:
        """Let a trial be taken again, by this command or another; its cost so far stays on record."""
        self._end(job)
        with suppress(UpdateFinishedTrialError):
            job.arm.beat(job.trial, job.seconds)
        with turn(self.folder):  # or another command would put a new trial in its place
            job.arm.again(job.trial.number)

    def _end(self, job: Job) -> None:
        """Stop a trial's process, if one runs; what it left stays for the next attempt unless it is over."""
        if job in self.jobs:
            self.jobs.remove(job)
        if job.running is not None:
            job.running.process.kill()
            close(job.running)
            job.running = None

    def _clear(self, cell: Cell) -> None:
        shutil.rmtree(self.folder / "cells" / cell.id, ignore_errors=True)

    def _beat(self) -> None:
        for job in list(self.jobs):
            try:
                job.arm.beat(job.trial, job.seconds)
            except UpdateFinishedTrialError:
                self._end(job)
