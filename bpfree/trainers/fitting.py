"""The one training loop: stages, epochs, steps; evaluation, early stopping, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from bpfree import _seeds
from bpfree._errors import BadValue, Diverged
from bpfree.cascade import Cascade
from bpfree.readouts import Readout
from bpfree.schedules import Data, Feed, GraphFeed, Stage, Store, calibrate, plan, step
from bpfree.trainers import checkpoint as ckpt
from bpfree.trainers.graph_evaluation import make_evaluator
from bpfree.trainers.history import History
from bpfree.trainers.judging import judges, validate
from bpfree.trainers.measurements import Measurements
from bpfree.trainers.optimizers import update_readout
from bpfree.trainers.run import Checkpoint, Hooks, Position
from bpfree.trainers.settings import FitSettings, TrainerSettings, lr_factor, set_lr

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
        fingerprint: str,
        checkpoint: Checkpoint | None,
        hooks: Hooks,
        history: History,
        diagnose: Callable[[], dict[str, Any]],
        store: Store,
    ) -> None:
        self.cascade, self.optimizers, self.settings, self.fit = cascade, optimizers, settings, fit
        self.train, self.seed, self.fingerprint = train, seed, fingerprint
        self.checkpoint, self.hooks = checkpoint, hooks
        self.stages = plan(settings.schedule, cascade)
        self.at, self.history, self.diagnose = Position(), history, diagnose
        self.at.total_steps = history.rows[-1]["step"] if history.rows else 0
        self.best: ckpt.Tensors = {}
        self.sums: Tensor | None = None
        # What is seen once is not worth keeping.
        keep = settings.cache and not all(loss.one_pass for loss in cascade.losses)
        self.feed: Feed | GraphFeed
        if cascade.encoding.whole:
            self.feed = GraphFeed(cascade, train, keep)
        else:
            self.feed = Feed(cascade, train, seed, fit.batch_size, keep, store)
        path = None if checkpoint is None else checkpoint.path
        self.measurements = Measurements(cascade, self.feed, path, fingerprint)
        self.evaluator = None
        if validation is not None:
            cached = settings.cache and (settings.schedule == "greedy" or cascade.encoding.whole)
            # A resumed run would measure what is kept anew, and so be another run.
            self.evaluator = make_evaluator(cascade, validation, cached and not self.measurements, store)
        self.saved_at = time.monotonic()

    def run(self) -> History:
        """Go through all stages, from where a checkpoint of this run stands if there is one."""
        self.cascade.remember({})
        if self.checkpoint is not None and self.checkpoint.path.exists():
            self._resume(self.checkpoint)
        finished = self.at.stage == len(self.stages)
        while self.at.stage < len(self.stages):
            self._run_stage(self.stages[self.at.stage])
            self.at = Position(stage=self.at.stage + 1, total_steps=self.at.total_steps)
            self.best = {}
        # The schedule of learning rates is the run's; a step outside it has the rate of the settings.
        set_lr(self.optimizers.values(), 1.0)
        self.cascade.eval()
        if self.checkpoint is not None and not finished:
            self._save(self.checkpoint)
        self.measurements.forget()
        return self.history

    # ---- one stage -------------------------------------------------------------------------------------

    def _run_stage(self, stage: Stage) -> None:
        self.cascade.eval()
        with self.hooks.window("calibrate"):
            if self.at == Position(total_steps=self.at.total_steps):
                calibrate(self.cascade.units, self.feed.batches(CALIBRATION_SAMPLES))
        with self.hooks.window("cache"):
            self._enter(stage)
        stopped = self._stale()
        while self.at.epoch < self._epochs(stage) and not stopped:
            self._run_epoch(stage)
            stopped = self._stale()
        if self.best:
            self.cascade.load_state_dict(self.best, strict=False)
        if self.settings.schedule == "greedy":
            for k in range(stage.first, stage.stop):
                # Without its moments an optimizer is as good as new, and holds no memory.
                self.optimizers[f"block{k}"].state.clear()
        epochs, best = self.at.epoch, self.at.best
        self.history.stages.append(
            {"name": stage.name, "epochs": epochs, "stopped_early": stopped}
            | ({"best_epoch": self.at.best_epoch, "best": best} if self.at.best_epoch >= 0 else {})
        )

    def _enter(self, stage: Stage) -> None:
        self.measurements.climb(stage.first, self.at.epoch, self.at.step)
        if self.evaluator is not None:
            self.evaluator.climb(stage.first, judges(self.cascade, stage))
        if stage.readouts and stage.first == stage.stop:
            for _, readout in self._learning(stage):
                self.feed.keep_outputs(readout.view)

    def _epochs(self, stage: Stage) -> int:
        """How many passes a stage takes at most: one, where another would change nothing."""
        return 1 if not self._learning(stage) and self._gathers(stage, all) else self.fit.epochs

    def _gathers(self, stage: Stage, quantifier: Callable[[Iterable[bool]], bool]) -> bool:
        """Whether all, or any, of the losses that train in a stage gather in one pass."""
        blocks = self.cascade.units[stage.first : stage.stop]
        return quantifier(loss.one_pass for block in blocks for loss in block.losses)

    def _stale(self) -> bool:
        return self.fit.patience is not None and self.at.stale >= self.fit.patience

    def _learning(self, stage: Stage) -> list[tuple[str, Readout]]:
        learning = [
            (n, self.cascade.readout(n)) for n in self.cascade.readouts if self.cascade.readout(n).learns
        ]
        return learning if stage.readouts else []

    # ---- one epoch -------------------------------------------------------------------------------------

    def _run_epoch(self, stage: Stage) -> None:
        factor = lr_factor(self.settings.lr_schedule, self.at.epoch, self.fit.epochs)
        set_lr(self.optimizers.values(), factor)
        self.cascade.eval()
        for module in [*self.cascade.units[stage.first : stage.stop], *(r for _, r in self._learning(stage))]:
            module.train()
        n_steps = math.ceil(len(self.train.y) / self.fit.batch_size)
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
            begins_anew = bool(self.measurements) and self._gathers(stage, any)
            if self.at.step == 0:
                for block in self.cascade.units[stage.first : stage.stop]:
                    for loss in block.losses:
                        loss.begin_pass()
            for indices in order.split(self.fit.batch_size)[self.at.step :]:
                losses = self._step(stage, indices)
                self.sums = losses if self.sums is None else self.sums + losses
                self.at.step += 1
                if not begins_anew:
                    self._save_if_due()
            assert self.sums is not None
            means = (self.sums / n_steps).tolist()
            self._check(stage, means)
            self._end_pass(stage)
        self.at.total_steps += n_steps
        self.at.epoch, self.at.step, self.sums = self.at.epoch + 1, 0, None
        self._close_epoch(stage, factor, means)

    def _check(self, stage: Stage, means: list[float]) -> None:
        bad = [k for k, value in enumerate(means) if not math.isfinite(value)]
        if bad:
            raise Diverged(
                f"the loss of {stage.name}, part {bad[0] + 1} of {len(means)}, became {means[bad[0]]} "
                f"in epoch {self.at.epoch + 1}: lower lr ({self.settings.lr}), or use precision 'float32'"
            )

    def _end_pass(self, stage: Stage) -> None:
        number = 0
        for k, block in enumerate(self.cascade.units[: stage.stop]):
            for loss in block.losses:
                if k >= stage.first:
                    seen = None if self.evaluator is None else self.evaluator.outputs(number, k + 1)
                    loss.end_pass(seen)
                number += 1

    def _step(self, stage: Stage, indices: Tensor) -> Tensor:
        epoch, number = self.at.epoch, self.at.step
        learning, scores, losses = self._learning(stage), None, []
        seed = _seeds.derive(self.seed, "step", epoch, number)
        if learning:
            _seeds.seed_global(indices.device, seed, "readout")
            x, y = self.feed.samples(indices, epoch, number)
            for name, readout in learning:
                outputs = self.feed.outputs(x, indices, readout.view)
                scores = readout(outputs, self.cascade.losses).detach()
                losses.append(update_readout(readout, self.optimizers[f"readout.{name}"], outputs, y))
        if stage.stop > stage.first:
            rows, target = self.feed.rows(indices, epoch, number, scores)
            blocks = self.cascade.units[stage.first : stage.stop]
            message = self.cascade.encoding.message()
            losses = step(blocks, rows, target, seed, stage.first, self.feed.sensed, message) + losses
        return torch.stack(losses).float()

    def _close_epoch(self, stage: Stage, factor: float, means: list[float]) -> None:
        row: dict[str, Any] = {
            "stage": stage.name,
            "epoch": self.at.epoch,
            "step": self.at.total_steps,
            "lr": factor,
            "loss": means,
        }
        due = self.at.epoch % self.fit.eval_every == 0 or self.at.epoch == self._epochs(stage)
        if self.evaluator is not None and due and judges(self.cascade, stage):
            with self.hooks.window("eval"):
                row["validation"] = validate(self.cascade, stage, self.evaluator)
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

    def _select(self, stage: Stage, accuracy: float) -> None:
        if accuracy > self.at.best + self.fit.min_delta:
            self.at.best, self.at.best_epoch, self.at.stale = accuracy, self.at.epoch, 0
            if self.fit.restore_best:
                self.best = {name: tensor.clone() for name, tensor in self._changing(stage)}
        else:
            self.at.stale += 1

    def _changing(self, stage: Stage) -> Iterator[tuple[str, Tensor]]:
        """The state that a stage changes: of the blocks that train but for their fronts, and of readouts."""
        blocks = {f"blocks.{k}.": f"blocks.{k}.front." for k in range(stage.first, stage.stop)}
        parts = blocks | {f"readouts.{name}.": " " for name, _ in self._learning(stage)}
        for name, tensor in self.cascade.state_dict().items():
            if any(name.startswith(part) and not name.startswith(fixed) for part, fixed in parts.items()):
                yield name, tensor

    # ---- checkpoints -----------------------------------------------------------------------------------

    def _save_if_due(self, now: bool = False) -> None:
        if self.checkpoint is not None and (
            now or time.monotonic() - self.saved_at >= self.checkpoint.every_s
        ):
            self._save(self.checkpoint)

    def _save(self, checkpoint: Checkpoint) -> None:
        with self.hooks.window("io"):
            self._write(checkpoint)
        self.saved_at = time.monotonic()

    def _write(self, checkpoint: Checkpoint) -> None:
        tensors = ckpt.prefixed("model", self.cascade.state_dict()) | ckpt.prefixed("best", self.best)
        tensors |= ckpt.prefixed("memory", self.cascade.memories())
        for name, optimizer in self.optimizers.items():
            tensors |= ckpt.prefixed(f"optimizer.{name}", ckpt.optimizer_tensors(optimizer))
        if self.sums is not None:
            tensors["sums"] = self.sums
        state = {
            "fingerprint": self.fingerprint,
            "position": {k: v for k, v in asdict(self.at).items() if v != -math.inf},
            "history": asdict(self.history),
            "carried": checkpoint.carried.state() if checkpoint.carried else None,
            "apparatus": self.measurements.state(tensors),
        }
        ckpt.write(checkpoint.path, tensors, state)

    def _resume(self, checkpoint: Checkpoint) -> None:
        tensors, state = ckpt.read(checkpoint.path, self.train.y.device)
        if "fingerprint" not in state:
            raise BadValue(f"{checkpoint.path} was written by Trainer.save, not by a run: name another file")
        if state["fingerprint"] != self.fingerprint:
            raise BadValue(
                f"{checkpoint.path} belongs to another run (other settings, seed or data): "
                "remove it, or name another file"
            )
        ckpt.load_module(self.cascade, ckpt.under("model", tensors), checkpoint.path)
        self.cascade.remember(ckpt.under("memory", tensors))
        for name, optimizer in self.optimizers.items():
            ckpt.load_optimizer(optimizer, ckpt.under(f"optimizer.{name}", tensors))
        self.best, self.sums = ckpt.under("best", tensors), tensors.get("sums")
        self.at, self.history = Position(**state["position"]), History(**state["history"])
        self.history.resumed += 1
        if self.at.stage < len(self.stages) and self._gathers(self.stages[self.at.stage], any):
            # What was gathered in the pass is not in the file: the pass begins anew, and gathers the same.
            self.at.step, self.sums = 0, None
        if checkpoint.carried is not None and state["carried"] is not None:
            checkpoint.carried.load(state["carried"])
        self.measurements.load(state["apparatus"], tensors)
