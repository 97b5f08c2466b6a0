"""The training loop: stages, epochs, steps; evaluation, early stopping, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from bpfree import _seeds
from bpfree._errors import WorkerLost
from bpfree._rows import Rows
from bpfree._types import JsonObject
from bpfree.core.block import BaseBlock
from bpfree.core.readouts import Readout
from bpfree.engine import saving
from bpfree.engine.base_feed import BaseFeed
from bpfree.engine.calibration import calibrate
from bpfree.engine.evaluation import Evaluator
from bpfree.engine.feedback_check import warn_without_feedback
from bpfree.engine.history import History
from bpfree.engine.optimizers import update_readout
from bpfree.engine.run_state import Checkpoint, Hooks, Position, RunState
from bpfree.engine.schedule import Stage
from bpfree.engine.selection import (
    check_finite,
    check_losses,
    is_finite,
    parts,
    selecting_readouts,
    validate,
)
from bpfree.engine.settings import lr_factor, set_lr
from bpfree.engine.step import linked_step, step
from bpfree.engine.weak_blocks import note_weak_blocks
from bpfree.losses import LocalLoss

__all__ = ["CALIBRATION_SAMPLES", "Checkpoint", "Hooks", "TrainingLoop"]

#: Training samples on which the statistics of normalization layers inside fronts are estimated.
CALIBRATION_SAMPLES = 10_000


@dataclass(frozen=True)
class EpochConstants:
    """What a step needs and is the same for all steps of an epoch.

    Attributes:
        blocks: This worker's blocks that are trained, bottom first; none in a stage of readouts alone.
        first: Number of the lowest of them.
        rows: Returns this worker's input rows of a step and their targets.
        front_output: Whether these rows are outputs of the front of the lowest block.
        step: `bpfree.engine.step.step`, with the connections to other workers.
        message: Feedback message for the highest block of the network.
        readouts: The readouts that are trained, by name.
        losses: The losses of all blocks.
        needs_scores: Whether the encoding draws by the class scores of a readout.
        seed_parts: Further parts of the seed of a step: a replica has other rows, so it draws other noise.
    """

    blocks: list[BaseBlock]
    first: int
    rows: Callable[[Tensor, int, int, Tensor | None], tuple[Rows, Tensor]]
    front_output: bool
    step: Callable[..., list[Tensor]]
    message: Tensor | None
    readouts: dict[str, Readout]
    losses: list[LocalLoss]
    seed_parts: tuple[int, ...]
    needs_scores: bool


class TrainingLoop:
    """Trains a built cascade.

    Args:
        state: The state of the run; `run` changes it.
        feed: Returns the training rows.
        evaluator: Evaluates on validation data; None without them.
        checkpoint: Where to save the state.
        hooks: Callbacks.
        diagnose: Returns further entries of the history's row after an evaluation.
    """

    def __init__(
        self,
        state: RunState,
        feed: BaseFeed,
        evaluator: Evaluator | None,
        checkpoint: Checkpoint | None,
        hooks: Hooks,
        diagnose: Callable[[], JsonObject],
    ) -> None:
        self.state, self.feed, self.evaluator = state, feed, evaluator
        self.checkpoint, self.hooks, self.diagnose = checkpoint, hooks, diagnose
        self.cascade, self.workers = state.cascade, state.workers
        #: Steps that each worker has taken, at the beginning of the epoch.
        self.positions = [0]
        #: Whether the run can be resumed from the state between two steps of the current epoch.
        self._resumable = False
        self._saved_at = time.monotonic()

    def run(self) -> History:
        """Run all stages; if there is a checkpoint of this run, from its position on."""
        state = self.state
        self.cascade.set_states({})
        if self.workers.is_first:
            warn_without_feedback(self.cascade)
        batch = torch.arange(state.n_samples, device=state.device)[: state.fit.batch_size]
        self.workers.assign(self.cascade, lambda: self.feed.rows(batch, 0, 0))
        resumed = saving.exists(self.checkpoint, self.workers)
        if self.checkpoint is not None and resumed:
            saving.resume(state, self.checkpoint)
        finished = state.finished
        self.positions = saving.agree(state, resumed)
        state.history.resumed += resumed
        state.history.replayed += sum(max(0, a - b) for a, b in pairwise(self.positions))
        if self.checkpoint is not None and not finished:
            self.workers.begin_run(state.index, None if resumed else self._save)
        while not state.finished:
            try:
                self._run_stage(state.stages[state.position.stage])
            except WorkerLost:
                # Replicas may have taken different steps, and must resume from one file.
                if self._resumable and self.checkpoint is not None and self.workers.replicas == 1:
                    self._save()
                raise
            state.position = Position(stage=state.position.stage + 1, total_steps=state.position.total_steps)
            state.best = {}
        self.cascade.eval()
        note_weak_blocks(state, self.evaluator)
        if self.checkpoint is not None and not finished:
            self._save()
            saving.remove_worker_files(state, self.checkpoint)
        state.measurements.remove_files()
        return state.history

    # ---- one stage -------------------------------------------------------------------------------------

    def _run_stage(self, stage: Stage) -> None:
        state = self.state
        self.cascade.eval()
        with self.hooks.window("calibrate"):
            if state.position == Position(total_steps=state.position.total_steps):
                batches = self.feed.batches(CALIBRATION_SAMPLES, state.fit.drop_last)
                calibrate(self.cascade.units, batches)
        with self.hooks.window("cache"):
            self._enter(stage)
        stopped = self._stale()
        while state.position.epoch < self._epochs(stage) and not stopped:
            self._run_epoch(stage)
            stopped = self._stale()
        if self.checkpoint is not None and len(state.stages) == 1:
            tensors = self.cascade.state_dict()
            state.end = replace(state.position)
            state.last = {name: tensors[name].clone() for name in state.best}
        if state.best:
            self.cascade.load_state_dict(state.best, strict=False)
        self.workers.broadcast_weights(self.cascade)
        if state.settings.schedule == "greedy":
            for k in range(stage.first, stage.stop):
                # Without its moments an optimizer is as good as new, and needs no memory.
                state.optimizers[f"block{k}"].state.clear()
        epochs, best_epoch = state.position.epoch, state.position.best_epoch
        best = (
            {"best_epoch": best_epoch, "best": state.metric.signed(state.position.best)}
            if best_epoch >= 0
            else {}
        )
        state.history.stages.append({"name": stage.name, "epochs": epochs, "stopped_early": stopped} | best)

    def _enter(self, stage: Stage) -> None:
        """Freeze the blocks below the stage, and cache what does not change in it."""
        position = self.state.position
        self.state.measurements.freeze_below(stage.first, position.epoch, position.step)
        if self.evaluator is not None:
            self.evaluator.freeze_below(stage.first, selecting_readouts(self.cascade, stage))
        if stage.readouts and stage.first == stage.stop:
            for readout in self.state.trained_readouts(stage).values():
                self.feed.cache_outputs(readout.view)

    def _epochs(self, stage: Stage) -> int:
        """The largest number of epochs of a stage: one, where a second one would change nothing."""
        state = self.state
        return 1 if not state.trained_readouts(stage) and state.one_pass(stage, all) else state.fit.epochs

    def _stale(self) -> bool:
        patience = self.state.fit.patience
        return patience is not None and self.state.position.stale >= patience

    # ---- one epoch -------------------------------------------------------------------------------------

    def _run_epoch(self, stage: Stage) -> None:
        state, position, fit = self.state, self.state.position, self.state.fit
        lr_schedule = state.settings.lr_schedule
        set_lr(state.optimizers.values(), lr_factor(lr_schedule, position.epoch, fit.epochs))
        lr = self._lr(stage)
        self.cascade.eval()
        for module in [
            *self.cascade.units[stage.first : stage.stop],
            *state.trained_readouts(stage).values(),
        ]:
            module.train()
        with self.hooks.window("train"):
            if state.measurements.too_old(position.epoch, state.settings.cache_lifetime()):
                state.measurements.renew(position.epoch)
            finite = self._run_steps(stage)
            assert state.sums is not None
            save = self._save if self._resumable and self.checkpoint is not None else None
            self.workers.synchronize(state.index, save)
            means = (self.workers.reduce_losses(state.sums) / state.n_steps).tolist()
            self._resumable = False
            check_losses(stage.name, means, position.epoch, state.settings.lr)
            self._end_pass(stage)
            broken = self.workers.reduce_losses(self._broken(stage, finite)).tolist()
            check_finite(stage.name, broken, position.epoch, state.settings.lr)
        position.total_steps += state.n_steps
        position.epoch, position.step, state.sums = position.epoch + 1, 0, None
        self.positions = [state.index] * self.workers.size
        self._close_epoch(stage, lr, means)

    def _run_steps(self, stage: Stage) -> list[Tensor]:
        """Take the steps of the epoch that are left; returns whether the outputs of the last were finite."""
        state, position, finite = self.state, self.state.position, list[Tensor]()
        order = torch.randperm(
            state.n_samples,
            generator=_seeds.generator(state.device, state.seed, "order", position.epoch),
            device=state.device,
        )
        # A pass that begins again needs the devices in the state that they had at its beginning. With several
        # workers, some may have finished the pass.
        several = self.workers.several
        begins_again = (state.measurements.has_devices or several) and state.one_pass(stage, any)
        if position.step == 0:
            for block in self.cascade.units[stage.first : stage.stop]:
                block.rule.begin_epoch(block)
        self._resumable = several and not begins_again
        save_between = self.checkpoint is not None and not begins_again
        self.workers.begin_epoch(self.positions, (position.epoch + 1) * state.n_steps)
        constants = self._epoch_constants(stage)
        take_step = self.workers.wrap_step(self._step, state.index)
        batches = order.split(state.fit.batch_size)[position.step : state.n_steps]
        for indices in batches:
            last = position.step == state.n_steps - 1
            losses = take_step(constants, indices, finite if last else None)
            state.sums = losses if state.sums is None else state.sums + losses
            position.step += 1
            if save_between:
                self._save_if_due()
        return finite

    def _epoch_constants(self, stage: Stage) -> EpochConstants:
        first, stop = self.workers.block_range(stage.first, stage.stop)
        encoding = self.cascade.encoding
        return EpochConstants(
            blocks=self.cascade.units[first:stop],
            first=first,
            rows=self.workers.split_rows(self.feed.rows, encoding.views),
            front_output=self.feed.front_output and first == stage.first,
            step=partial(linked_step, self.workers.neighbors) if self.workers.several else step,
            message=encoding.message(),
            readouts=self.state.trained_readouts(stage),
            losses=self.cascade.losses,
            seed_parts=(self.workers.replica,) if self.workers.replica else (),
            needs_scores=encoding.needs_scores,
        )

    def _step(self, constants: EpochConstants, indices: Tensor, finite: list[Tensor] | None) -> Tensor:
        """Take one step; returns the losses of this worker's blocks, then of readouts.

        Args:
            constants: What is the same for all steps of the epoch.
            indices: The samples, ``[B]``.
            finite: A list to which is added, for each block, whether its output is finite; None: unchecked.
        """
        epoch, number = self.state.position.epoch, self.state.position.step
        seed = _seeds.derive(self.state.seed, "step", epoch, number, *constants.seed_parts)
        scores, losses = None, list[Tensor]()
        if constants.readouts:
            scores, losses = self._step_readouts(constants, indices, seed)
        if constants.blocks:
            rows, target = constants.rows(indices, epoch, number, scores)
            losses = (
                constants.step(
                    constants.blocks,
                    rows,
                    target,
                    seed,
                    constants.first,
                    constants.front_output,
                    constants.message,
                    finite,
                )
                + losses
            )
        return torch.stack(losses).float()

    def _step_readouts(
        self, constants: EpochConstants, indices: Tensor, seed: int
    ) -> tuple[Tensor | None, list[Tensor]]:
        """One step of each readout that is trained; returns the scores of the last ``[B, C]``, and losses."""
        position, scores, losses = self.state.position, None, list[Tensor]()
        _seeds.seed_global(indices.device, seed, "readout")
        x, y = self.feed.samples(indices, position.epoch, position.step)
        for name, readout in constants.readouts.items():
            outputs = self.feed.outputs(x, indices, readout.view)
            if constants.needs_scores:
                scores = readout(outputs, constants.losses).detach()
            optimizer = self.state.optimizers[f"readout.{name}"]
            losses.append(update_readout(readout, optimizer, outputs, y))
        return scores, losses

    def _end_pass(self, stage: Stage) -> None:
        if self.state.one_pass(stage, any):
            self.workers.broadcast_weights(self.cascade)
        number, (first, stop) = 0, self.workers.block_range(stage.first, stage.stop)
        for k, block in enumerate(self.cascade.units[:stop]):
            if k >= first and block.rule.one_pass:
                outputs = None if self.evaluator is None else self.evaluator.outputs(number, k + 1)
                block.rule.end_epoch(block, outputs)
            number += len(block.losses)

    def _lr(self, stage: Stage) -> float:
        """The learning rate of the lowest block of a stage, or of the readout where that is trained alone."""
        names = [f"block{k}" for k in range(stage.first, stage.stop)]
        names += [f"readout.{name}" for name in self.state.trained_readouts(stage)]
        return float(self.state.optimizers[names[0]].param_groups[0]["lr"])

    def _broken(self, stage: Stage, finite: list[Tensor]) -> Tensor:
        """1 for each loss whose block, or readout, has outputs or weights that are not finite; else 0.

        Args:
            stage: The stage.
            finite: Whether the last outputs of this worker's blocks were finite; empty if no step was taken.
        """
        first, stop = self.workers.block_range(stage.first, stage.stop)
        all_finite: list[Tensor] = []
        for k, block in enumerate(self.cascade.units[first:stop]):
            all_finite += [is_finite(part) for part in parts([block])]
            if finite:
                all_finite[-1] = all_finite[-1] & finite[k]
        all_finite += [is_finite(readout) for readout in self.state.trained_readouts(stage).values()]
        return 1 - torch.stack(all_finite).float()

    def _close_epoch(self, stage: Stage, lr: float, means: list[float]) -> None:
        """Evaluate, add the history's row, and save."""
        state, position, fit = self.state, self.state.position, self.state.fit
        row: JsonObject = {
            "stage": stage.name,
            "epoch": position.epoch,
            "step": position.total_steps,
            "lr": lr,
            "loss": means,
            **self.workers.report_age(),
        }
        due = position.epoch % fit.eval_every == 0 or position.epoch == self._epochs(stage)
        readouts = selecting_readouts(self.cascade, stage) if due else []
        if self.evaluator is not None and readouts:
            with self.hooks.window("eval"):
                self.workers.broadcast_weights(self.cascade)
                row["metric"] = state.metric.name
                row["validation"] = validate(self.cascade, stage, self.evaluator, state.metric)
                if diagnosis := self.diagnose():
                    row["diagnosis"] = diagnosis
            self._select(stage, row["validation"][readouts[0]])
        has_devices = state.measurements.has_devices
        if has_devices:
            row["passes"] = state.measurements.passes()
        state.history.rows.append(row)
        done = position.stage * fit.epochs + position.epoch
        self.hooks.progress(done, len(state.stages) * fit.epochs, row)
        # Measuring again costs passes of the devices, so every epoch with devices is saved.
        self._save_if_due(now=has_devices)

    def _select(self, stage: Stage, value: float) -> None:
        state, position = self.state, self.state.position
        signed = state.metric.signed(value)
        if signed > position.best + state.fit.min_delta:
            position.best, position.best_epoch, position.stale = signed, position.epoch, 0
            if state.fit.restore_best:
                state.best = {name: tensor.clone() for name, tensor in state.trained_tensors(stage)}
        else:
            position.stale += 1

    # ---- checkpoints -----------------------------------------------------------------------------------

    def _save_if_due(self, now: bool = False) -> None:
        if self.checkpoint is not None:
            elapsed = time.monotonic() - self._saved_at >= self.checkpoint.every_s
            if self.workers.checkpoint_due(self.state.index, elapsed) or now:
                self._save()

    def _save(self) -> None:
        assert self.checkpoint is not None
        with self.hooks.window("io"):
            saving.save(self.state, self.checkpoint)
        self._saved_at = time.monotonic()
