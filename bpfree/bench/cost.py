"""What a method computes and keeps, counted on short runs of the real loop: of one batch and of two."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bpfree.data import GraphData, Splits
from bpfree.meters import count_flops, counting_flops, saved_for_backward, tensor_bytes
from bpfree.trainers import CALIBRATION_SAMPLES, History, Hooks, Trainer


@dataclass
class StageFlops:
    """FLOPs of one stage of a run, by what they are spent on.

    Attributes:
        calibrate: Estimating the statistics of normalisation layers inside fronts.
        cache: Answering once for every sample what is then kept.
        train: Steps, and solving at the end of a pass.
    """

    calibrate: int = 0
    cache: int = 0
    train: int = 0


@dataclass
class Ledger:
    """Windows for a run's hooks that count FLOPs, and the optimizers' bytes at their fullest."""

    trainer: Trainer
    stages: list[StageFlops] = field(default_factory=list)
    optimizer_bytes: int = 0
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
        elif name == "train":
            self.stages[-1].train += flops.total
            states = [
                v for o in self.trainer.optimizers.values() for s in o.state.values() for v in s.values()
            ]
            found = tensor_bytes(v for v in states if isinstance(v, Tensor))
            self.optimizer_bytes = max(self.optimizer_bytes, found)


@dataclass(frozen=True)
class Cost:
    """Counted costs of a method on a data set.

    Attributes:
        batch: Samples of a step.
        one: Stages of a run over one batch, one pass each, and how many passes each took.
        two: The same over two batches.
        infer: FLOPs of a prediction for one sample.
        memory: ``saved_bytes``, ``params`` and ``optim``, in bytes, the last the most held at one time.
    """

    batch: int
    one: list[tuple[StageFlops, int]]
    two: list[tuple[StageFlops, int]]
    infer: int
    memory: dict[str, int]

    def steps(self) -> list[float]:
        """FLOPs of a training step of each stage: what a second batch adds to a pass."""
        return [(b.train - a.train) / n for (a, n), (b, _) in zip(self.one, self.two, strict=True)]

    def flops(self, history: History, n_train: int) -> dict[str, float]:
        """The figures of a row.

        ``train_step`` is a step of every stage, so that each block has stepped once. ``train_total`` is what
        the run with this history computed: its steps, what it kept of every sample, and what it solved at the
        end of a pass. Validation is not in it, but for the choice among solutions, on one batch.
        """
        batches = n_train / self.batch
        calibrated = min(n_train, CALIBRATION_SAMPLES) / self.batch
        total = 0.0
        stages = zip(self.steps(), self.one, self.two, history.stages, strict=True)
        for step, (a, passes), (b, _), stage in stages:
            solve = a.train / passes - step
            total += stage["epochs"] * (batches * step + solve)
            total += batches * (b.cache - a.cache) + calibrated * (b.calibrate - a.calibrate)
        return {
            "train_step": sum(self.steps()),
            "train_total": total,
            "batch": self.batch,
            "infer": self.infer,
        }


@dataclass(frozen=True, kw_only=True)
class WholeCost(Cost):
    """Counted costs where no batch can be shown without all the data: on a graph.

    ``one`` and ``two`` are runs of one pass and of two over all training samples.

    Attributes:
        batches: Steps of a pass.
    """

    batches: int

    def steps(self) -> list[float]:
        """FLOPs of a training step of each stage: what a second pass adds, if there is one."""
        pairs = zip(self.one, self.two, strict=True)
        return [(b.train - a.train if m > n else a.train) / self.batches for (a, n), (b, m) in pairs]

    def flops(self, history: History, n_train: int) -> dict[str, float]:
        total = 0.0
        for step, (a, _), stage in zip(self.steps(), self.one, history.stages, strict=True):
            passes = step * self.batches
            total += a.calibrate + a.cache + (a.train - passes) + stage["epochs"] * passes
        steps = sum(self.steps())
        return {"train_step": steps, "train_total": total, "batch": self.batch, "infer": self.infer}


def measure(make: Callable[[], Trainer], data: Splits, fit: Mapping[str, Any]) -> Cost:
    """Count the costs of a method by training it on one batch, and on two; on a graph, for one pass and two.

    Args:
        make: Makes the trainer, the same each time, not compiled.
        data: Its data.
        fit: Its settings of `Trainer.fit`.
    """
    whole = isinstance(data.train, GraphData)
    n_train = len(data.train)
    batch = min(fit["batch_size"], n_train if whole else max(1, n_train // 2))
    judge = data.validation.take(torch.arange(min(batch, len(data.validation))))
    runs, saved_bytes = [], 0
    for times in (1, 2):
        trainer = make()
        ledger = Ledger(trainer)
        train = data.train if whole else data.train.take(torch.arange(times * batch))
        with saved_for_backward() as saved:
            history = trainer.fit(
                train, judge, hooks=Hooks(ledger.window), batch_size=batch, epochs=times if whole else 1
            )
        saved_bytes = max(saved_bytes, saved.peak_bytes)
        runs.append([(f, s["epochs"]) for f, s in zip(ledger.stages, history.stages, strict=True)])
    with torch.inference_mode():
        infer = count_flops(trainer.cascade.eval(), judge.batch(torch.arange(1))[0])
    params = tensor_bytes(trainer.cascade.parameters())
    memory = {"saved_bytes": saved_bytes, "params": params, "optim": ledger.optimizer_bytes}
    if whole:
        return WholeCost(batch, runs[0], runs[1], infer, memory, batches=math.ceil(n_train / batch))
    return Cost(batch, runs[0], runs[1], infer, memory)
