"""FLOPs and memory of a method, counted on short runs: of one and two batches, or of one and two epochs."""

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
    """FLOPs of one stage of a run.

    Attributes:
        calibrate: Of estimating the statistics of normalization layers in fronts.
        cache: Of computing the cached features of every sample once.
        train: Of steps, and of solving at the end of an epoch.
        last: The part of ``train`` in the last epoch.
    """

    calibrate: int = 0
    cache: int = 0
    train: int = 0
    last: int = 0


@dataclass
class Ledger:
    """Counts FLOPs in the windows of a run's hooks, and the bytes of gradients and optimizer state."""

    trainer: Trainer
    stages: list[StageFlops] = field(default_factory=list)
    optimizer_bytes: int = 0
    gradient_bytes: int = 0
    _pending: int = 0

    @contextmanager
    def window(self, name: str) -> Iterator[None]:
        """Count the FLOPs of a window of the training loop."""
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
            state_bytes = tensor_bytes(v for v in states if isinstance(v, Tensor))
            self.optimizer_bytes = max(self.optimizer_bytes, state_bytes)

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
        memory: ``saved_bytes``, ``params``, ``grads`` and ``optim``, in bytes; all but ``params`` are peaks.
    """

    batch: int
    infer: int
    memory: dict[str, int]

    @abstractmethod
    def steps(self) -> list[float]:
        """FLOPs of a training step of each stage."""

    @abstractmethod
    def total(self, history: History, n_train: int) -> float:
        """FLOPs of the run with this history: steps, cached features, and solving at the end of an epoch.

        Validation is not included, except for the choice among solutions, on one batch.
        """

    def flops(self, history: History, n_train: int) -> dict[str, float]:
        """The section ``flops`` of a row.

        ``train_step`` is one step of every stage, so that each block steps once; ``train_total`` is `total`.
        """
        return {
            "train_step": sum(self.steps()),
            "train_total": self.total(history, n_train),
            "batch": self.batch,
            "infer": self.infer,
        }


@dataclass(frozen=True, kw_only=True)
class BatchCost(Cost):
    """Costs from the difference between an epoch of two batches and one of one batch.

    Attributes:
        one: Stages of a run over one batch, and their epochs.
        two: The same over two batches.
        stepped: Samples of the steps of an epoch; None: all.
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
        for step, (a, epochs), (b, _), stage in stages:
            solve = a.train / epochs - step
            total += stage["epochs"] * ((self.stepped or n_train) / self.batch * step + solve)
            total += batches * (b.cache - a.cache) + calibrated * (b.calibrate - a.calibrate)
        return total


@dataclass(frozen=True, kw_only=True)
class GraphCost(Cost):
    """Costs on a graph, where a batch needs all nodes.

    Attributes:
        stages: Of a run of two epochs over all training samples, or of one where a second changes nothing.
        batches: Steps of an epoch.
    """

    stages: list[StageFlops]
    batches: int

    def steps(self) -> list[float]:
        return [stage.last / self.batches for stage in self.stages]

    def total(self, history: History, n_train: int) -> float:
        total = 0.0
        for counted, stage in zip(self.stages, history.stages, strict=True):
            # The first epoch also computes what the others reuse.
            first = counted.train - counted.last or counted.last
            total += counted.calibrate + counted.cache + first + (stage["epochs"] - 1) * counted.last
        return total


def measure(make: Callable[[], Trainer], data: Splits, fit: FitSettings) -> Cost:
    """Count the costs of a method by training it on one batch, and on two; on a graph, for two epochs.

    Args:
        make: Makes the trainer, the same each time, not compiled.
        data: Its data.
        fit: Its settings of `Trainer.fit`.
    """
    on_graph, n_train = isinstance(data.train, GraphData), len(data.train)
    batch = min(fit.batch_size, n_train if on_graph else max(1, n_train // 2))
    validation = data.validation.take(torch.arange(min(batch, len(data.validation))))
    if on_graph:
        runs = [_counted(make(), data.train, validation, batch, epochs=2)]
    else:
        parts = (data.train.take(torch.arange(times * batch)) for times in (1, 2))
        runs = [_counted(make(), part, validation, batch, epochs=1) for part in parts]
    ledger = runs[-1][0]
    with torch.inference_mode():
        infer = count_flops(ledger.trainer.cascade.eval(), validation.batch(torch.arange(1))[0])
    memory = {
        "saved_bytes": max(saved_bytes for _, _, saved_bytes in runs),
        "params": tensor_bytes(ledger.trainer.cascade.parameters()),
        "grads": ledger.gradient_bytes,
        "optim": ledger.optimizer_bytes,
    }
    if on_graph:
        batches = replace(fit, batch_size=batch).steps(n_train)
        return GraphCost(batch=batch, infer=infer, memory=memory, stages=ledger.stages, batches=batches)
    one, two = (
        [(f, s["epochs"]) for f, s in zip(run.stages, history.stages, strict=True)]
        for run, history, _ in runs
    )
    stepped = fit.steps(n_train) * fit.batch_size if fit.drop_last else None
    return BatchCost(batch=batch, infer=infer, memory=memory, one=one, two=two, stepped=stepped)


def _counted(
    trainer: Trainer, train: Any, validation: Any, batch: int, epochs: int
) -> tuple[Ledger, History, int]:
    """The counts of a run, its history, and its peak of bytes saved for backward."""
    ledger = Ledger(trainer)
    with saved_for_backward() as saved, warnings.catch_warnings():
        # The run on all data gives the warnings.
        warnings.simplefilter("ignore")
        history = trainer.fit(train, validation, hooks=Hooks(ledger.window), batch_size=batch, epochs=epochs)
    return ledger, history, saved.peak_bytes
