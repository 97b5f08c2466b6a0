"""What a method computes and keeps, counted on short runs: one batch and two, or one pass and the next."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bpfree.data import GraphData, Splits
from bpfree.meters import count_flops, counting_flops, saved_for_backward, tensor_bytes
from bpfree.trainers import CALIBRATION_SAMPLES, FitSettings, History, Hooks, Trainer


@dataclass
class StageFlops:
    """FLOPs of one stage of a run, by what they are spent on.

    Attributes:
        calibrate: Estimating the statistics of normalisation layers inside fronts.
        cache: Answering once for every sample what is then kept.
        train: Steps, and solving at the end of a pass.
        last: What the last pass has of ``train``.
    """

    calibrate: int = 0
    cache: int = 0
    train: int = 0
    last: int = 0


@dataclass
class Ledger:
    """Windows for a run's hooks that count FLOPs, and the bytes of gradients and optimizer state."""

    trainer: Trainer
    stages: list[StageFlops] = field(default_factory=list)
    optimizer_bytes: int = 0
    gradient_bytes: int = 0
    _pending: int = 0

    @contextmanager
    def window(self, name: str) -> Iterator[None]:
        """Count what runs inside a window of the training loop."""
        with counting_flops() as flops:
            yield
        if name == "calibrate":
            self._pending = flops.total
        elif name == "cache":
            self.stages.append(StageFlops(self._pending, flops.total))
            if len(self.stages) == 1:
                for optimizer in self.trainer.optimizers.values():
                    optimizer.register_step_pre_hook(self._note_gradients)
        elif name == "train":
            self.stages[-1].train += flops.total
            self.stages[-1].last = flops.total
            states = [
                v for o in self.trainer.optimizers.values() for s in o.state.values() for v in s.values()
            ]
            found = tensor_bytes(v for v in states if isinstance(v, Tensor))
            self.optimizer_bytes = max(self.optimizer_bytes, found)

    def _note_gradients(self, *_: object) -> None:
        groups = (group for optimizer in self.trainer.optimizers.values() for group in optimizer.param_groups)
        gradients = (p.grad for group in groups for p in group["params"] if p.grad is not None)
        self.gradient_bytes = max(self.gradient_bytes, tensor_bytes(gradients))


@dataclass(frozen=True, kw_only=True)
class Cost(ABC):
    """Counted costs of a method on a data set.

    Attributes:
        batch: Samples of a step.
        infer: FLOPs of a prediction for one sample.
        memory: ``saved_bytes``, ``params``, ``grads`` and ``optim``, in bytes; all but ``params`` are the
            most that was held at one time.
    """

    batch: int
    infer: int
    memory: dict[str, int]

    @abstractmethod
    def steps(self) -> list[float]:
        """FLOPs of a training step of each stage."""

    @abstractmethod
    def total(self, history: History, n_train: int) -> float:
        """FLOPs of what the run with this history computed: its steps, what it kept of every sample, and what
        it solved at the end of a pass. Validation is not in it, but for the choice among solutions, on one
        batch.
        """

    def flops(self, history: History, n_train: int) -> dict[str, float]:
        """The figures of a row.

        ``train_step`` is a step of every stage, so that each block has stepped once; ``train_total`` is
        `total`.
        """
        return {
            "train_step": sum(self.steps()),
            "train_total": self.total(history, n_train),
            "batch": self.batch,
            "infer": self.infer,
        }


@dataclass(frozen=True, kw_only=True)
class BatchCost(Cost):
    """Costs by what a second batch adds to a pass.

    Attributes:
        one: Stages of a run over one batch, one pass each, and how many passes each took.
        two: The same over two batches.
        stepped: Samples that an epoch takes steps on; None: all.
    """

    one: list[tuple[StageFlops, int]]
    two: list[tuple[StageFlops, int]]
    stepped: int | None = None

    def steps(self) -> list[float]:
        return [(b.train - a.train) / n for (a, n), (b, _) in zip(self.one, self.two, strict=True)]

    def total(self, history: History, n_train: int) -> float:
        batches = n_train / self.batch
        calibrated = min(n_train, CALIBRATION_SAMPLES) / self.batch
        total = 0.0
        stages = zip(self.steps(), self.one, self.two, history.stages, strict=True)
        for step, (a, passes), (b, _), stage in stages:
            solve = a.train / passes - step
            total += stage["epochs"] * ((self.stepped or n_train) / self.batch * step + solve)
            total += batches * (b.cache - a.cache) + calibrated * (b.calibrate - a.calibrate)
        return total


@dataclass(frozen=True, kw_only=True)
class WholeCost(Cost):
    """Costs where no batch can be shown without all the data: on a graph.

    Attributes:
        stages: Of a run of two passes over all training samples, or of one where a second would change
            nothing.
        batches: Steps of a pass.
    """

    stages: list[StageFlops]
    batches: int

    def steps(self) -> list[float]:
        return [stage.last / self.batches for stage in self.stages]

    def total(self, history: History, n_train: int) -> float:
        total = 0.0
        for found, stage in zip(self.stages, history.stages, strict=True):
            # The first pass has also made what the others find made.
            first = found.train - found.last or found.last
            total += found.calibrate + found.cache + first + (stage["epochs"] - 1) * found.last
        return total


def measure(make: Callable[[], Trainer], data: Splits, fit: FitSettings) -> Cost:
    """Count the costs of a method by training it on one batch, and on two; on a graph, for two passes.

    Args:
        make: Makes the trainer, the same each time, not compiled.
        data: Its data.
        fit: Its settings of `Trainer.fit`.
    """
    whole, n_train = isinstance(data.train, GraphData), len(data.train)
    batch = min(fit.batch_size, n_train if whole else max(1, n_train // 2))
    judge = data.validation.take(torch.arange(min(batch, len(data.validation))))
    if whole:
        runs = [_counted(make(), data.train, judge, batch, epochs=2)]
    else:
        parts = (data.train.take(torch.arange(times * batch)) for times in (1, 2))
        runs = [_counted(make(), part, judge, batch, epochs=1) for part in parts]
    ledger = runs[-1][0]
    with torch.inference_mode():
        infer = count_flops(ledger.trainer.cascade.eval(), judge.batch(torch.arange(1))[0])
    memory = {
        "saved_bytes": max(saved_bytes for _, _, saved_bytes in runs),
        "params": tensor_bytes(ledger.trainer.cascade.parameters()),
        "grads": ledger.gradient_bytes,
        "optim": ledger.optimizer_bytes,
    }
    if whole:
        batches = replace(fit, batch_size=batch).steps(n_train)
        return WholeCost(batch=batch, infer=infer, memory=memory, stages=ledger.stages, batches=batches)
    one, two = (
        [(f, s["epochs"]) for f, s in zip(run.stages, history.stages, strict=True)]
        for run, history, _ in runs
    )
    stepped = fit.steps(n_train) * fit.batch_size if fit.drop_last else None
    return BatchCost(batch=batch, infer=infer, memory=memory, one=one, two=two, stepped=stepped)


def _counted(
    trainer: Trainer, train: Any, judge: Any, batch: int, epochs: int
) -> tuple[Ledger, History, int]:
    """What a run counted, its history, and the most bytes that it saved for backward."""
    ledger = Ledger(trainer)
    with saved_for_backward() as saved, warnings.catch_warnings():
        # What is to be said of the data is said when all of it is trained on.
        warnings.simplefilter("ignore")
        history = trainer.fit(train, judge, hooks=Hooks(ledger.window), batch_size=batch, epochs=epochs)
    return ledger, history, saved.peak_bytes
