"""The one training loop: stages, epochs, steps; evaluation, early stopping, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from bpfree import _seeds
from bpfree._errors import WorkerLost
from bpfree.cascade import Cascade
from bpfree.metrics import Metric
from bpfree.readouts import Readout
from bpfree.schedules import Crew, Data, Feed, GraphFeed, Stage, Store, Workers, calibrate, plan, step
from bpfree.trainers import saving
from bpfree.trainers.checkpoint import Tensors
from bpfree.trainers.feedback import warn_without_feedback
from bpfree.trainers.graph_evaluation import make_evaluator
from bpfree.trainers.history import History
from bpfree.trainers.judging import check_finite, check_losses, is_finite, judges, parts, validate
from bpfree.trainers.measurements import Measurements
from bpfree.trainers.optimizers import update_readout
from bpfree.trainers.run import Checkpoint, Hooks, Position
from bpfree.trainers.settings import FitSettings, TrainerSettings, lr_factor, set_lr
from bpfree.trainers.weak_blocks import note_weak_blocks

__all__ = ["CALIBRATION_SAMPLES", "Checkpoint", "Fit", "Hooks"]

#: Training samples that the statistics of normalisation layers inside fronts are estimated on.
CALIBRATION_SAMPLES = 10_000


class Fit:
    """One run of the loop over a built cascade."""

    def __init__(
        self,
        cascade: Cascade,
        optimizers: dict[str, torch.optim.Optimizer],
        settings: TrainerSettings,
        fit: FitSettings,
        train: Data,
        validation: Data | None,
        seed: int,
        identity: dict[str, Any],
        checkpoint: Checkpoint | None,
        hooks: Hooks,
        history: History,
        diagnose: Callable[[], dict[str, Any]],
        crew: Crew,
        store: Store,
        metric: Metric,
    ) -> None:
        self.cascade, self.optimizers, self.settings, self.fit = cascade, optimizers, settings, fit
        self.train, self.seed, self.identity, self.metric = train, seed, identity, metric
        self.fingerprint = saving.fingerprint(identity)
        self.checkpoint, self.hooks, self.crew = checkpoint, hooks, crew
        self.n_steps = fit.steps(len(train.y))
        #: Whether this worker stands between two steps, so that a later one can go on from here.
        self.between = False
        self.stages = plan(settings.schedule, cascade)
        self.at, self.history, self.diagnose = Position(), history, diagnose
        self.at.total_steps = history.rows[-1]["step"] if history.rows else 0
        self.best: Tensors = {}
        # Where the only stage has ended, and the weights that its best took the place of: to go on from.
        self.end: Position | None = None
        self.last: Tensors = {}
        self.sums: Tensor | None = None
        # What is seen once is not worth keeping.
        keep = settings.cache and not all(loss.one_pass for loss in cascade.losses)
        self.feed: Feed | GraphFeed
        if cascade.encoding.whole:
            self.feed = GraphFeed(cascade, train, keep, store)
        else:
            self.feed = Feed(cascade, train, seed, fit.batch_size, keep, store)
        path = None if checkpoint is None else checkpoint.path
        self.measurements = Measurements(cascade, self.feed, path, self.fingerprint)
        self.evaluator = None
        if validation is not None:
            cached = settings.cache and (settings.schedule == "greedy" or cascade.encoding.whole)
            # A resumed run would measure what is kept anew, and so be another run.
            self.evaluator = make_evaluator(cascade, validation, cached and not self.measurements, store)
        self.saved_at = time.monotonic()

    def run(self) -> History:
        """Go through all stages, from where a checkpoint of this run stands if there is one."""
        self.cascade.remember({})
        if self.crew.leads:
            warn_without_feedback(self.cascade)
        batch = torch.arange(len(self.train.y), device=self.train.y.device)[: self.fit.batch_size]
        self.crew.assign(self.cascade, lambda: self.feed.rows(batch, 0, 0))
        resumed = saving.begun(self.checkpoint, self.crew)
        if self.checkpoint is not None and resumed:
            saving.resume(self, self.checkpoint)
        finished = self.at.stage == len(self.stages)
        self.positions = saving.agree(self, resumed)
        self.history.resumed += resumed
        self.history.replayed += sum(max(0, a - b) for a, b in pairwise(self.positions))
        if isinstance(self.crew, Workers) and self.checkpoint is not None and not finished:
            self.crew.keep()
            self.crew.cut(self.index, None if resumed else self._save)
        while self.at.stage < len(self.stages):
            try:
                self._run_stage(self.stages[self.at.stage])
            except WorkerLost:
                # Replicas stand apart by now, and must go on from one file.
                if self.between and self.checkpoint is not None and self.crew.replicas == 1:
                    self._save()
                raise
            self.at = Position(stage=self.at.stage + 1, total_steps=self.at.total_steps)
            self.best = {}
        self.cascade.eval()
        note_weak_blocks(self)
        if self.checkpoint is not None and not finished:
            self._save()
            saving.clear(self, self.checkpoint)
        self.measurements.forget()
        return self.history

    @property
    def index(self) -> int:
        """Steps that the stage has taken, over all epochs."""
        return self.at.epoch * self.n_steps + self.at.step

    # ---- one stage -------------------------------------------------------------------------------------

    def _run_stage(self, stage: Stage) -> None:
        self.cascade.eval()
        with self.hooks.window("calibrate"):
            if self.at == Position(total_steps=self.at.total_steps):
                calibrate(self.cascade.units, self.feed.batches(CALIBRATION_SAMPLES, self.fit.drop_last))
        with self.hooks.window("cache"):
            self._enter(stage)
        stopped = self._stale()
        while self.at.epoch < self._epochs(stage) and not stopped:
            self._run_epoch(stage)
            stopped = self._stale()
        if self.checkpoint is not None and len(self.stages) == 1:
            now = self.cascade.state_dict()
            self.end, self.last = replace(self.at), {name: now[name].clone() for name in self.best}
        if self.best:
            self.cascade.load_state_dict(self.best, strict=False)
        self.crew.sync(self.cascade)
        if self.settings.schedule == "greedy":
            for k in range(stage.first, stage.stop):
                # Without its moments an optimizer is as good as new, and holds no memory.
                self.optimizers[f"block{k}"].state.clear()
        epochs, best = self.at.epoch, self.metric.signed(self.at.best)
        self.history.stages.append(
            {"name": stage.name, "epochs": epochs, "stopped_early": stopped}
            | ({"best_epoch": self.at.best_epoch, "best": best} if self.at.best_epoch >= 0 else {})
        )

    def _enter(self, stage: Stage) -> None:
        self.measurements.climb(stage.first, self.at.epoch, self.at.step)
        if self.evaluator is not None:
            self.evaluator.climb(stage.first, judges(self.cascade, stage))
        if stage.readouts and stage.first == stage.stop:
            for _, readout in self.learning(stage):
                self.feed.keep_outputs(readout.view)

    def _epochs(self, stage: Stage) -> int:
        """How many passes a stage takes at most: one, where another would change nothing."""
        return 1 if not self.learning(stage) and self.gathers(stage, all) else self.fit.epochs

    def gathers(self, stage: Stage, quantifier: Callable[[Iterable[bool]], bool]) -> bool:
        """Whether all, or any, of the losses that train in a stage gather in one pass."""
        blocks = self.cascade.units[stage.first : stage.stop]
        return quantifier(loss.one_pass for block in blocks for loss in block.losses)

    def _stale(self) -> bool:
        return self.fit.patience is not None and self.at.stale >= self.fit.patience

    def learning(self, stage: Stage) -> list[tuple[str, Readout]]:
        """The readouts that learn in a stage, by name."""
        learning = [
            (n, self.cascade.readout(n)) for n in self.cascade.readouts if self.cascade.readout(n).learns
        ]
        return learning if stage.readouts else []

    # ---- one epoch -------------------------------------------------------------------------------------

    def _run_epoch(self, stage: Stage) -> None:
        set_lr(self.optimizers.values(), lr_factor(self.settings.lr_schedule, self.at.epoch, self.fit.epochs))
        lr, finite = self._lr(stage), list[Tensor]()
        self.cascade.eval()
        for module in [*self.cascade.units[stage.first : stage.stop], *(r for _, r in self.learning(stage))]:
            module.train()
        with self.hooks.window("train"):
            if self.measurements.too_old(self.at.epoch, getattr(self.settings, "cache_age", None)):
                self.measurements.renew(self.at.epoch)
            device = self.train.y.device
            order = torch.randperm(
                len(self.train.y),
                generator=_seeds.generator(device, self.seed, "order", self.at.epoch),
                device=device,
            )
            # A pass that is taken up from its beginning needs the devices as they were there.
            # So do workers, of whom some may have passed its end.
            several = isinstance(self.crew, Workers)
            begins_anew = (bool(self.measurements) or several) and self.gathers(stage, any)
            if self.at.step == 0:
                for block in self.cascade.units[stage.first : stage.stop]:
                    for loss in block.losses:
                        loss.begin_pass()
            self.between = several and not begins_anew
            self.crew.begin(self.positions, (self.at.epoch + 1) * self.n_steps)
            for indices in order.split(self.fit.batch_size)[self.at.step : self.n_steps]:
                self.crew.wires.begin(self.index)
                with self.crew.working():
                    last = self.at.step == self.n_steps - 1
                    losses = self._step(stage, indices, finite if last else None)
                self.sums = losses if self.sums is None else self.sums + losses
                self.at.step += 1
                if not begins_anew:
                    self._save_if_due()
            assert self.sums is not None
            self.crew.cut(self.index, self._save if self.between and self.checkpoint is not None else None)
            means = (self.crew.total(self.sums) / self.n_steps).tolist()
            self.between = False
            check_losses(stage.name, means, self.at.epoch, self.settings.lr)
            self._end_pass(stage)
            broken = self.crew.total(self._broken(stage, finite)).tolist()
            check_finite(stage.name, broken, self.at.epoch, self.settings.lr)
        self.at.total_steps += self.n_steps
        self.at.epoch, self.at.step, self.sums = self.at.epoch + 1, 0, None
        self.positions = [self.index] * self.crew.size
        self._close_epoch(stage, lr, means)

    def _end_pass(self, stage: Stage) -> None:
        if self.gathers(stage, any):
            self.crew.sync(self.cascade)
        number, (first, stop) = 0, self.crew.share(stage.first, stage.stop)
        for k, block in enumerate(self.cascade.units[:stop]):
            for loss in block.losses:
                if k >= first:
                    seen = None if self.evaluator is None else self.evaluator.outputs(number, k + 1)
                    loss.end_pass(seen)
                number += 1

    def _lr(self, stage: Stage) -> float:
        """The learning rate of the lowest block of a stage, or of the readout where that learns alone."""
        names = [f"block{k}" for k in range(stage.first, stage.stop)]
        names += [f"readout.{name}" for name, _ in self.learning(stage)]
        return float(self.optimizers[names[0]].param_groups[0]["lr"])

    def _broken(self, stage: Stage, finite: list[Tensor]) -> Tensor:
        """1 for each loss whose block, or readout, has outputs or weights that are not finite; else 0.

        Args:
            stage: The stage.
            finite: Whether the outputs of this worker's blocks were, if a step has just been taken.
        """
        first, stop = self.crew.share(stage.first, stage.stop)
        found: list[Tensor] = []
        for k, block in enumerate(self.cascade.units[first:stop]):
            found += [is_finite(part) for part in parts([block])]
            if finite:
                found[-1] = found[-1] & finite[k]
        found += [is_finite(readout) for _, readout in self.learning(stage)]
        return 1 - torch.stack(found).float()

    def _step(self, stage: Stage, indices: Tensor, finite: list[Tensor] | None) -> Tensor:
        epoch, number = self.at.epoch, self.at.step
        learning, scores, losses = self.learning(stage), None, []
        # Replicas have other rows, so they draw other noise.
        replica = (self.crew.replica,) if self.crew.replica else ()
        seed = _seeds.derive(self.seed, "step", epoch, number, *replica)
        if learning:
            _seeds.seed_global(indices.device, seed, "readout")
            x, y = self.feed.samples(indices, epoch, number)
            for name, readout in learning:
                outputs = self.feed.outputs(x, indices, readout.view)
                scores = readout(outputs, self.cascade.losses).detach()
                losses.append(update_readout(readout, self.optimizers[f"readout.{name}"], outputs, y))
        if stage.stop > stage.first:
            rows, target = self.feed.rows(indices, epoch, number, scores)
            rows, target = self.crew.part(rows, target, self.cascade.encoding.views)
            first, stop = self.crew.share(stage.first, stage.stop)
            sensed, message = self.feed.sensed and first == stage.first, self.cascade.encoding.message()
            blocks, wires = self.cascade.units[first:stop], self.crew.wires
            losses = step(blocks, rows, target, seed, first, sensed, message, wires, finite) + losses
        return torch.stack(losses).float() * self.crew.weight

    def _close_epoch(self, stage: Stage, lr: float, means: list[float]) -> None:
        row: dict[str, Any] = {
            "stage": stage.name,
            "epoch": self.at.epoch,
            "step": self.at.total_steps,
            "lr": lr,
            "loss": means,
            **self.crew.report(),
        }
        due = self.at.epoch % self.fit.eval_every == 0 or self.at.epoch == self._epochs(stage)
        if self.evaluator is not None and due and judges(self.cascade, stage):
            with self.hooks.window("eval"):
                self.crew.sync(self.cascade)
                row["metric"] = self.metric.name
                row["validation"] = validate(self.cascade, stage, self.evaluator, self.metric)
                if diagnosis := self.diagnose():
                    row["diagnosis"] = diagnosis
            self._select(stage, row["validation"][judges(self.cascade, stage)[0]])
        if self.measurements:
            row["passes"] = self.measurements.passes()
        self.history.rows.append(row)
        done = self.at.stage * self.fit.epochs + self.at.epoch
        self.hooks.progress(done, len(self.stages) * self.fit.epochs, row)
        # What a device has answered cannot be had again for nothing: no epoch of it is left unsaved.
        self._save_if_due(now=bool(self.measurements))

    def _select(self, stage: Stage, value: float) -> None:
        signed = self.metric.signed(value)
        if signed > self.at.best + self.fit.min_delta:
            self.at.best, self.at.best_epoch, self.at.stale = signed, self.at.epoch, 0
            if self.fit.restore_best:
                self.best = {name: tensor.clone() for name, tensor in saving.changing(self, stage)}
        else:
            self.at.stale += 1

    # ---- checkpoints -----------------------------------------------------------------------------------

    def _save_if_due(self, now: bool = False) -> None:
        if self.checkpoint is not None:
            elapsed = time.monotonic() - self.saved_at >= self.checkpoint.every_s
            if self.crew.due(self.index, elapsed) or now:
                self._save()

    def _save(self) -> None:
        assert self.checkpoint is not None
        with self.hooks.window("io"):
            saving.save(self, self.checkpoint)
        self.saved_at = time.monotonic()
