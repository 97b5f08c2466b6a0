"""Takes trials, runs each seed in a process of its own, prunes by epoch, and reports to the study."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial, TrialState

from bpfree._errors import BpfreeError
from bpfree.bench.cells import Cell
from bpfree.bench.files import Mapped
from bpfree.bench.metric import metric_in
from bpfree.bench.results import Row
from bpfree.bench.runner import Running, close, receive, start, start_server
from bpfree.tune import trial as trial_module
from bpfree.tune.storage import turn
from bpfree.tune.study import HEARTBEAT_S, ArmStudy

#: Times that the process of a trial may be killed, or run out of memory, before the search stops.
MAX_CRASHES = 3

#: Seconds between two checks of trials of other commands.
POLL_S = 0.5


class TrialFailed(BpfreeError):
    """A trial raised an error that does not depend on its settings."""


@dataclass
class Callbacks:
    """Functions that a worker calls when a trial makes progress and ends."""

    progress: Callable[[ArmStudy, Trial, int], None] = lambda arm, trial, epochs: None
    finished: Callable[[ArmStudy, Trial, str], None] = lambda arm, trial, outcome: None


@dataclass
class RunningTrial:
    """A running trial: its remaining seeds, of which the first is running."""

    arm: ArmStudy
    trial: Trial
    cells: list[Cell]
    scores: list[float] = field(default_factory=list)
    running: Running | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Seconds since the trial was taken."""
        return time.monotonic() - self.started


class Worker:
    """Runs trials until each study has its number.

    Args:
        studies: The arms; they alternate, so that a stopped search has spent the same on each.
        folder: Folder of checkpoints; commands on the same folder take trials one after the other.
        jobs: Trials at once.
        checkpoint_s: Seconds between checkpoints within a trial.
        callbacks: Functions to call.
    """

    def __init__(
        self,
        studies: Sequence[ArmStudy],
        folder: Path,
        jobs: int = 1,
        checkpoint_s: float = 20.0,
        callbacks: Callbacks | None = None,
    ) -> None:
        self.studies, self.folder, self.slots = studies, folder, jobs
        self.checkpoint_s, self.callbacks = checkpoint_s, callbacks or Callbacks()
        self.jobs: list[RunningTrial] = []

    def run(self, timeout: float | None = None) -> bool:
        """Run trials; returns whether all are finished, which is False after a timeout.

        Trials that were started and not finished can be taken again afterwards.

        Args:
            timeout: Seconds after which to stop.

        Raises:
            BadValue: If a setting of a trial is bad.
            TrialFailed: If a trial raised an error or its processes were killed `MAX_CRASHES` times.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        last_heartbeat = time.monotonic()
        start_server([study.arm.cells[0] for study in self.studies])
        try:
            while deadline is None or time.monotonic() < deadline:
                self._fill()
                if not self.jobs:
                    if all(study.finished() >= study.trials for study in self.studies):
                        return True
                    time.sleep(POLL_S)  # the other trials run in another command, which may be killed
                    continue
                remaining = math.inf if deadline is None else deadline - time.monotonic()
                self._receive(min(HEARTBEAT_S, remaining))
                if time.monotonic() - last_heartbeat >= HEARTBEAT_S:
                    last_heartbeat = time.monotonic()
                    self._heartbeat()
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
        job = RunningTrial(study, trial, study.arm.with_settings(trial.params))
        self.jobs.append(job)
        outcomes = study.outcomes()
        for cell in [cell for cell in job.cells if cell.id in outcomes]:
            # Another attempt, or another trial with the same settings, has the same outcome.
            self._add(job, outcomes[cell.id])
        self._next(job)

    def _next(self, job: RunningTrial) -> None:
        """Run the first of the remaining seeds, or report the mean if there is none."""
        if job.cells:
            folder = self.folder / "cells" / job.cells[0].id
            job.running = start(trial_module.run, job.cells[0], folder, self.checkpoint_s)
            return
        value = sum(job.scores) / len(job.scores)
        self._tell(job, TrialState.COMPLETE, job.arm.metric().text(value), value)

    def _add(self, job: RunningTrial, outcome: Mapped) -> None:
        cell = next(cell for cell in job.cells if cell.seed == outcome["seed"])
        job.cells.remove(cell)
        job.scores.append(outcome[f"val_{metric_in(outcome).name}"])
        job.trial.set_user_attr("cells", {**job.trial.user_attrs.get("cells", {}), cell.id: outcome})

    # ---- messages --------------------------------------------------------------------------------------

    def _receive(self, timeout: float) -> None:
        ready = wait([job.running.pipe for job in self.jobs if job.running is not None], max(timeout, 0))
        for job in [job for job in self.jobs if job.running is not None and job.running.pipe in ready]:
            if job.running is None:  # it was ended meanwhile
                continue
            row = receive(job.running, lambda cell, epochs, value, job=job: self._report(job, epochs, value))
            try:
                if row is not None and job in self.jobs:
                    self._result(job, row)
            except UpdateFinishedTrialError:  # another command has taken the trial over
                self._end(job)

    def _report(self, job: RunningTrial, epochs: int, value: float) -> None:
        """Report the mean over finished seeds and this seed's newest value; prune a trial that is behind."""
        step = job.arm.arm.cells[0].fit.epochs * len(job.scores) + epochs
        mean = (sum(job.scores) + value) / (len(job.scores) + 1)
        self.callbacks.progress(job.arm, job.trial, step)
        try:
            # A trial that continues from a checkpoint may repeat reports of its last attempt.
            if step not in job.arm.study.get_trials(deepcopy=False)[job.trial.number].intermediate_values:
                job.trial.report(mean, step)
        except UpdateFinishedTrialError:
            self._end(job)
            return
        if job.trial.should_prune() and job.running is not None:
            cell = job.running.cell
            self._tell(job, TrialState.PRUNED, f"pruned after {step} epochs")
            self._clear(cell)

    def _result(self, job: RunningTrial, row: Row) -> None:
        running, job.running = job.running, None
        assert running is not None
        close(running)
        if row["status"] == "ok":
            self._clear(running.cell)
            self._add(job, {name: value for name, value in row.items() if name != "status"})
            self._next(job)
        elif row["status"] == "diverged":
            self._clear(running.cell)
            job.trial.set_user_attr("diverged", row["reason"])
            self._tell(job, TrialState.PRUNED, "diverged")
        else:
            self._failed(job, row, crashed=row["status"] == "oom" or bool(running.process.exitcode))

    def _failed(self, job: RunningTrial, row: Row, crashed: bool) -> None:
        crashes = job.trial.user_attrs.get("deaths", 0) + 1
        if not crashed or crashes >= MAX_CRASHES:
            where = f"{job.arm.arm.label}, trial {job.trial.number} with {job.trial.params}"
            raise TrialFailed(
                f"{where}: {row['reason'].strip()}\n"
                "the other trials are stored: the same command continues when this is fixed"
            )
        job.trial.set_user_attr("deaths", crashes)
        self._give_back(job)
        self.callbacks.finished(job.arm, job.trial, f"will be repeated: {row['reason']}")

    # ---- ending them -----------------------------------------------------------------------------------

    def _tell(self, job: RunningTrial, state: TrialState, outcome: str, value: float | None = None) -> None:
        self._end(job)
        try:
            job.arm.heartbeat(job.trial, job.seconds)
            job.arm.study.tell(job.trial, value, state)
        except (UpdateFinishedTrialError, ValueError):
            return  # as in _receive
        self.callbacks.finished(job.arm, job.trial, outcome)

    def _give_back(self, job: RunningTrial) -> None:
        """Let a trial be taken again, by this command or another; its seconds so far stay in its record."""
        self._end(job)
        with suppress(UpdateFinishedTrialError):
            job.arm.heartbeat(job.trial, job.seconds)
        with turn(self.folder):  # else another command could add a new trial in its place
            job.arm.again(job.trial.number)

    def _end(self, job: RunningTrial) -> None:
        """Stop a trial's process, if one runs; its checkpoint stays for the next attempt."""
        if job in self.jobs:
            self.jobs.remove(job)
        if job.running is not None:
            job.running.process.kill()
            close(job.running)
            job.running = None

    def _clear(self, cell: Cell) -> None:
        shutil.rmtree(self.folder / "cells" / cell.id, ignore_errors=True)

    def _heartbeat(self) -> None:
        for job in list(self.jobs):
            try:
                job.arm.heartbeat(job.trial, job.seconds)
            except UpdateFinishedTrialError:
                self._end(job)
