"""Checks, before training, that a network can be trained and evaluated on the smallest batch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from bpfree._errors import BadValue, BpfreeError
from bpfree.core.cascade import Cascade
from bpfree.data import TensorData
from bpfree.engine.calibration import calibrate
from bpfree.engine.evaluation import BATCH, Evaluator
from bpfree.engine.loop import CALIBRATION_SAMPLES
from bpfree.engine.settings import FitSettings
from bpfree.nn import counted_modules


class TrialTrainer(Protocol):
    """The members of a `bpfree.Trainer` that are used here."""

    net: nn.Module

    @property
    def cascade(self) -> Cascade:
        """The blocks."""

    def clone(self) -> Self:
        """An independent copy."""

    def build_for(self, data: TensorData) -> None:
        """Build the cascade for training on ``data``."""

    def running(self) -> AbstractContextManager[None]:
        """A context for training and evaluation."""

    def make_evaluator(self, data: TensorData) -> Evaluator:
        """Create an evaluator of the readouts on ``data``."""

    def _step(self, cascade: Cascade, x: Tensor, y: Tensor, number: int) -> list[Tensor]: ...


def check_batches(
    trainer: TrialTrainer, train: TensorData, validation: TensorData | None, fit: FitSettings
) -> None:
    """Check that there is a batch, and that the network can be trained and evaluated on the smallest one.

    If the smallest batch has one sample, a copy of the trainer takes a step on it, since normalization layers
    may need more. Networks with devices are not checked, since each row that a device processes is counted,
    nor are networks that cannot be copied.

    Args:
        trainer: The trainer, built or not. It is not modified.
        train: Training data.
        validation: Validation data.
        fit: Settings of the run.

    Raises:
        BadValue: If there is no batch, or the network cannot be trained or evaluated on it.
    """
    n, size = len(train), fit.batch_size
    if not fit.steps(n):
        raise BadValue(
            f"drop_last = True with batch_size = {size}: {n} samples make no batch; lower batch_size"
        )
    if counted_modules(trainer.net):
        return
    smallest = size if fit.drop_last else min(size, n % size or size)
    calibration = min(n, CALIBRATION_SAMPLES)
    trains_on_one = smallest == 1 or (calibration % size == 1 and not fit.drop_last)
    instance_norm = any(isinstance(m, nn.modules.instancenorm._InstanceNorm) for m in trainer.net.modules())
    evaluates_one = validation is not None and _evaluates_one(trainer.net, len(validation), train.n_classes)
    copy = _built_copy(trainer, train) if trains_on_one or instance_norm or evaluates_one else None
    if copy is None:
        return
    if trains_on_one or instance_norm:
        fix = "raise batch_size" if size == 1 else "set drop_last = True, or another batch_size"
        batch = train.take(torch.arange(1 if trains_on_one else min(2, n)))
        _try_step(copy, batch, "pass more samples" if n == 1 else fix)
    if validation is not None and evaluates_one:
        with evaluating(), copy.running():
            copy.make_evaluator(validation.take(torch.arange(1))).scores([copy.cascade.headline])


def _built_copy(trainer: TrialTrainer, train: TensorData) -> TrialTrainer | None:
    """A copy of the trainer, built for ``train``; None if the network cannot be copied."""
    try:
        copy = trainer.clone()
    except Exception:  # noqa: BLE001 (copying a user's module can raise any error)
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the trainer itself gives these warnings
        copy.build_for(train)
    return copy


def _try_step(copy: TrialTrainer, batch: TensorData, fix: str) -> None:
    n = len(batch)
    x, y = batch.batch(torch.arange(n))
    finite_before = all(p.isfinite().all() for p in copy.cascade.parameters())
    try:
        with copy.running():
            if not copy.cascade.encoding.transductive:
                drawn = copy.cascade.encoding.draw(
                    y, torch.Generator(y.device), torch.zeros(n, batch.n_classes, device=y.device)
                )
                calibrate(copy.cascade.units, [copy.cascade.encoding.encode(x, y, drawn)[0]])
            losses = copy._step(copy.cascade, x, y, 0)
    except BpfreeError:
        raise
    except (RuntimeError, ValueError) as error:
        raise BadValue(
            f"the network cannot be trained on a batch of {n}, as the last of an epoch would be: {error}; "
            f"{fix}"
        ) from None
    finite_after = all(v.isfinite().all() for v in (*losses, *copy.cascade.parameters()))
    if finite_before and n == 1 and not finite_after:
        raise BadValue(
            "a step on a batch of 1, as the last of an epoch would be, gives losses or weights that are not "
            f"finite; {fix}"
        )


def _evaluates_one(net: nn.Module, n: int, n_classes: int) -> bool:
    """Whether a sample is evaluated in a batch of one, by a network that computes statistics of a batch."""
    norms = (m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return any(m.running_mean is None for m in norms) and any(
        n % max(1, BATCH // c) == 1 for c in {1, n_classes}
    )


@contextmanager
def evaluating() -> Iterator[None]:
    """A context that raises the error of a normalization layer for a batch of one with a fix."""
    try:
        yield
    except ValueError as error:
        if isinstance(error, BpfreeError) or "Expected more than 1 value" not in str(error):
            raise
        raise BadValue(
            f"one sample alone cannot be evaluated: {error}; pass more samples, or use batch normalization "
            "with running statistics (track_running_stats = True)"
        ) from None
