"""Batches that a network cannot take: found out before training, and not at the end of an epoch."""

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
        """What training and evaluation run in."""

    def make_evaluator(self, data: TensorData) -> Evaluator:
        """What evaluates readouts on ``data``."""

    def _step(self, cascade: Cascade, x: Tensor, y: Tensor, number: int) -> list[Tensor]: ...


def check_batches(
    trainer: TrialTrainer, train: TensorData, validation: TensorData | None, fit: FitSettings
) -> None:
    """Check that there is a batch, and that the network can be trained on the smallest, and evaluated on it.

    Where the smallest has one sample, a copy of the trainer takes a step on it: normalization layers may need
    more, wherever they are. Networks with devices inside are not tried, since each row that is sent counts,
    nor are those that cannot be copied.

    Args:
        trainer: Built or not; it is not changed.
        train: Training data.
        validation: Validation data.
        fit: Settings of the run.

    Raises:
        BadValue: If it cannot.
    """
    n, size = len(train), fit.batch_size
    if not fit.steps(n):
        raise BadValue(
            f"drop_last = True with batch_size = {size}: {n} samples make no batch; lower batch_size"
        )
    if counted_modules(trainer.net):
        return
    smallest = size if fit.drop_last else min(size, n % size or size)
    seen = min(n, CALIBRATION_SAMPLES)
    lone = smallest == 1 or (seen % size == 1 and not fit.drop_last)
    one_value = any(isinstance(m, nn.modules.instancenorm._InstanceNorm) for m in trainer.net.modules())
    alone = validation is not None and _alone(trainer.net, len(validation), train.n_classes)
    copy = _built_copy(trainer, train) if lone or one_value or alone else None
    if copy is None:
        return
    if lone or one_value:
        remedy = "raise batch_size" if size == 1 else "give drop_last = True, or another batch_size"
        few = train.take(torch.arange(1 if lone else min(2, n)))
        _try_step(copy, few, "give more samples" if n == 1 else remedy)
    if validation is not None and alone:
        with evaluating(), copy.running():
            copy.make_evaluator(validation.take(torch.arange(1))).scores([copy.cascade.headline])


def _built_copy(trainer: TrialTrainer, train: TensorData) -> TrialTrainer | None:
    """A copy of the trainer, built for ``train``; None where the network cannot be copied."""
    try:
        copy = trainer.clone()
    except Exception:  # noqa: BLE001 (a module may refuse to be copied, in any way)
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the trainer itself warns
        copy.build_for(train)
    return copy


def _try_step(copy: TrialTrainer, few: TensorData, remedy: str) -> None:
    n = len(few)
    x, y = few.batch(torch.arange(n))
    before = all(p.isfinite().all() for p in copy.cascade.parameters())
    try:
        with copy.running():
            if not copy.cascade.encoding.transductive:
                drawn = copy.cascade.encoding.draw(
                    y, torch.Generator(y.device), torch.zeros(n, few.n_classes, device=y.device)
                )
                calibrate(copy.cascade.units, [copy.cascade.encoding.encode(x, y, drawn)[0]])
            losses = copy._step(copy.cascade, x, y, 0)
    except BpfreeError:
        raise
    except (RuntimeError, ValueError) as error:
        raise BadValue(
            f"the network cannot be trained on a batch of {n}, as the last of an epoch would be: {error}; "
            f"{remedy}"
        ) from None
    after = all(v.isfinite().all() for v in (*losses, *copy.cascade.parameters()))
    if before and n == 1 and not after:
        raise BadValue(
            "a step on a batch of 1, as the last of an epoch would be, gives losses or weights that are not "
            f"finite; {remedy}"
        )


def _alone(net: nn.Module, n: int, n_classes: int) -> bool:
    """Whether some sample is evaluated in a batch of its own, by a network that looks at the whole batch."""
    norms = (m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return any(m.running_mean is None for m in norms) and any(
        n % max(1, BATCH // c) == 1 for c in {1, n_classes}
    )


@contextmanager
def evaluating() -> Iterator[None]:
    """What a normalization layer raises for a batch of one is told with what to do."""
    try:
        yield
    except ValueError as error:
        if isinstance(error, BpfreeError) or "Expected more than 1 value" not in str(error):
            raise
        raise BadValue(
            f"one sample alone cannot be evaluated: {error}; give more samples, or let batch normalization "
            "keep running statistics (track_running_stats = True)"
        ) from None
