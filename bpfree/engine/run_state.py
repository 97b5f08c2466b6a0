"""The options and the state of a run: what the training loop changes and a checkpoint stores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from bpfree._types import JsonObject
from bpfree.core.cascade import Cascade
from bpfree.core.readouts import Readout
from bpfree.distributed.workers import Workers
from bpfree.engine.checkpoint import Tensors
from bpfree.engine.history import History
from bpfree.engine.identity import Identity, fingerprint
from bpfree.engine.measurements import Measurements
from bpfree.engine.schedule import Stage, plan
from bpfree.engine.settings import FitSettings, TrainerSettings
from bpfree.metrics import Metric

Window = Callable[[str], AbstractContextManager[Any]]


class Carried(Protocol):
    """An object whose state is saved in the checkpoints of a run, such as a stopwatch."""

    def state(self) -> JsonObject:
        """The state, as JSON can represent it."""

    def load(self, state: JsonObject) -> None:
        """Load the result of `state`."""


@dataclass(frozen=True)
class Checkpoint:
    """Where and how often a run saves its state.

    Attributes:
        path: The file. If it exists, the run continues from it. At the end it contains the finished run.
        every_s: Smallest number of seconds between two writes.
        carried: An object whose state is saved in the same file.
    """

    path: Path
    every_s: float = 30.0
    carried: Carried | None = None


@dataclass
class Hooks:
    """Callbacks of a run.

    Attributes:
        window: Called with the name of a phase (``calibrate``, ``cache``, ``train``, ``eval``, ``io``);
            returns a context manager that the phase runs in.
        progress: Called after each epoch with the number of finished epochs, the largest number of epochs,
            and the history's row of the epoch.
    """

    window: Window = lambda name: nullcontext()
    progress: Callable[[int, int, JsonObject], None] = lambda done, of, row: None


@dataclass
class Position:
    """The position of a run: with the tensors, all that is needed to continue it.

    Attributes:
        stage: Number of the stage.
        epoch: Finished epochs of the stage.
        step: Steps taken in the current epoch.
        total_steps: Steps of all finished epochs, over all stages.
        best: Best validation result of the stage.
        best_epoch: Its epoch, from 1; -1: none yet.
        stale: Evaluations since then.
    """

    stage: int = 0
    epoch: int = 0
    step: int = 0
    total_steps: int = 0
    best: float = -math.inf
    best_epoch: int = -1
    stale: int = 0


@dataclass
class RunState:
    """The state of a run over a built cascade.

    Attributes:
        cascade: The blocks.
        optimizers: By name: ``block0`` and so on, ``readout.name``.
        settings: Settings of the trainer.
        fit: Settings of the run.
        seed: Seed of the run.
        n_samples: Number of training samples.
        device: Device of the training data.
        identity: The settings, data and network that a checkpoint must agree on.
        workers: The workers that train the blocks.
        measurements: The devices in the fronts, and the files of their cached outputs.
        metric: The metric of validation.
        validated: Whether there are validation data.
        history: The rows so far.
        position: Where the run is.
        best: The tensors that the stage trains, at its best evaluation; empty before one.
        sums: Sums of the losses over the steps of the current epoch, ``[n_losses]``; None before the first.
        end: Position at the end of the only stage, before its best weights were restored.
        last: The tensors of ``best`` at ``end``, to continue from with more epochs.
    """

    cascade: Cascade
    optimizers: dict[str, torch.optim.Optimizer]
    settings: TrainerSettings
    fit: FitSettings
    seed: int
    n_samples: int
    device: torch.device
    identity: Identity
    workers: Workers
    measurements: Measurements
    metric: Metric
    validated: bool
    history: History = field(default_factory=History)
    position: Position = field(default_factory=Position)
    best: Tensors = field(default_factory=dict)
    sums: Tensor | None = None
    end: Position | None = None
    last: Tensors = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stages = plan(self.settings.schedule, self.cascade)
        self.n_steps = self.fit.steps(self.n_samples)
        if self.history.rows:
            self.position.total_steps = self.history.rows[-1]["step"]

    @cached_property
    def fingerprint(self) -> str:
        """The digest of the identity."""
        return fingerprint(self.identity)

    @property
    def index(self) -> int:
        """Steps that the stage has taken, over all epochs."""
        return self.position.epoch * self.n_steps + self.position.step

    @property
    def finished(self) -> bool:
        """Whether all stages are done."""
        return self.position.stage == len(self.stages)

    def trained_readouts(self, stage: Stage) -> dict[str, Readout]:
        """The readouts that are trained in a stage, by name."""
        if not stage.readouts:
            return {}
        readouts = {name: self.cascade.readout(name) for name in self.cascade.readouts}
        return {name: readout for name, readout in readouts.items() if readout.learns}

    def one_pass(self, stage: Stage, quantifier: Callable[[Iterable[bool]], bool]) -> bool:
        """Whether ``all``, or ``any``, of the losses of a stage are solved after one pass over the data."""
        blocks = self.cascade.units[stage.first : stage.stop]
        return quantifier(block.rule.one_pass for block in blocks)

    def trained_tensors(self, stage: Stage) -> Iterator[tuple[str, Tensor]]:
        """The tensors that a stage changes: of this worker's blocks without their fronts, and of readouts."""
        first, stop = self.workers.block_range(stage.first, stage.stop)
        fronts = {f"blocks.{k}.": f"blocks.{k}.front." for k in range(first, stop)}
        readouts = tuple(f"readouts.{name}." for name in self.trained_readouts(stage))
        for name, tensor in self.cascade.state_dict().items():
            in_blocks = any(
                name.startswith(block) and not name.startswith(front) for block, front in fronts.items()
            )
            if in_blocks or name.startswith(readouts):
                yield name, tensor

    def other_workers_tensors(self) -> Tensors:
        """The tensors of the cascade that belong to blocks of other workers."""
        n = len(self.cascade.units)
        first, stop = self.workers.block_range(0, n)
        others = tuple(f"blocks.{k}." for k in range(n) if not first <= k < stop)
        return {name: t for name, t in self.cascade.state_dict().items() if name.startswith(others)}
