"""Settings of trainers and of `Trainer.fit`, and the optimizers made from them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import nn

from bpfree._settings import STRICT
from bpfree._types import JsonObject
from bpfree.engine.schedule import Schedule
from bpfree.nn.layout import is_dense

OptimizerName = Literal["adam", "adamw", "sgd"]
LRSchedule = Literal["constant", "cosine", "cooldown", "steps"]

#: Fractions of the epochs at which the schedule ``steps`` divides the learning rate by 4 (arXiv 1901.06656).
STEPS_AT = (0.5, 0.75, 0.89, 0.94)


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """Settings of all trainers.

    Attributes:
        lr: Learning rate of every block.
        weight_decay: Weight decay of every block.
        optimizer: One optimizer of this kind per block.
        momentum: Momentum of SGD.
        lr_schedule: ``constant``; ``cosine``, from lr to 0; ``cooldown``, constant for half of the epochs,
            then decreasing linearly by 2/epochs per epoch, as in the reference code of Forward-Forward;
            ``steps``, divided by 4 after 50, 75, 89 and 94 % of the epochs.
        schedule: ``simultaneous``; ``greedy``; or ``pipelined``, which is simultaneous with the workers that
            torchrun starts.
        cache: Whether features of frozen blocks and outputs of fronts are cached if they are constant.
        precision: ``float32``; or ``bfloat16``, in which matrix products and convolutions of training,
            caching, evaluation and prediction are computed, by autocast; weights and losses are float32.
        channels_last: Whether the weights of convolutions have the memory format `torch.channels_last`. It is
            faster on most machines, in particular in bfloat16. The network must not call `view` on maps.
        compile: Name of a `torch.compile` backend for the blocks, or None.
        cut: Where blocks begin, see `bpfree.split`.
    """

    __pydantic_config__ = STRICT

    lr: Annotated[float, Gt(0)] = 1e-3
    weight_decay: Annotated[float, Ge(0)] = 0.0
    optimizer: OptimizerName = "adam"
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    lr_schedule: LRSchedule = "constant"
    schedule: Schedule = "simultaneous"
    cache: bool = True
    precision: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = False
    compile: str | None = None
    cut: str | int | list[str] = "weight"

    def feedback_rate(self) -> float:
        """Return the learning rate of parameters that compute feedback."""
        return self.lr

    def readout_rate(self) -> float:
        """Return the learning rate of readouts with parameters."""
        return self.lr

    def readout_decay(self) -> float:
        """Return the weight decay of readouts with parameters."""
        return self.weight_decay

    def cache_lifetime(self) -> int | None:
        """Return the epochs after which cached outputs of devices are measured again; None: never."""
        return None


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """Settings of one call of `Trainer.fit`.

    Attributes:
        epochs: Passes over the training data, in each stage.
        batch_size: Samples per step.
        patience: Number of evaluations without an improvement after which a stage ends; None: no limit.
        min_delta: Smallest change of the metric that counts as an improvement; 0.001 of an accuracy is 0.1 %.
        restore_best: Whether a stage ends with the weights of its best evaluation.
        eval_every: Epochs between evaluations.
        drop_last: Whether to omit the last batch of an epoch if it is shorter. The order of samples differs
            between epochs, so other samples are omitted each time.
    """

    __pydantic_config__ = STRICT

    epochs: Annotated[int, Ge(1)] = 10
    batch_size: Annotated[int, Ge(1)] = 128
    patience: Annotated[int, Ge(1)] | None = None
    min_delta: Annotated[float, Ge(0), Lt(1)] = 0.0
    restore_best: bool = True
    eval_every: Annotated[int, Ge(1)] = 1
    drop_last: bool = False

    def steps(self, n_samples: int) -> int:
        """Return the number of steps per epoch."""
        return n_samples // self.batch_size if self.drop_last else math.ceil(n_samples / self.batch_size)


def make_optimizer(
    parameters: Iterable[nn.Parameter],
    settings: TrainerSettings,
    lr: float | None = None,
    decay: float | None = None,
    other_groups: Iterable[tuple[Iterable[nn.Parameter], float]] = (),
) -> torch.optim.Optimizer:
    """Return an optimizer of ``parameters``, fused if possible.

    Args:
        parameters: The parameters.
        settings: Kind of the optimizer, and its hyperparameters.
        lr: Learning rate; by default that of ``settings``.
        decay: Weight decay; by default that of ``settings``.
        other_groups: Further parameter groups, with a learning rate each.
    """
    lr = settings.lr if lr is None else lr
    decay = settings.weight_decay if decay is None else decay
    # A block may have no trainable parameters. PyTorch accepts an empty group, but not an empty list.
    groups: list[JsonObject] = [{"params": list(parameters)}]
    groups += [{"params": list(group), "lr": rate} for group, rate in other_groups]
    fused = all(_can_be_fused(p) for group in groups for p in group["params"])
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr, momentum=settings.momentum, weight_decay=decay, fused=fused)
    kind: type[torch.optim.Adam] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    return kind(groups, lr, weight_decay=decay, fused=fused)


def _can_be_fused(parameter: nn.Parameter) -> bool:
    """Whether a fused optimizer can update the parameter; it assumes dense memory."""
    return parameter.is_floating_point() and parameter.device.type in ("cpu", "cuda") and is_dense(parameter)


def state_values(settings: TrainerSettings) -> int:
    """Return the number of values that the optimizer stores per parameter."""
    return int(settings.momentum > 0) if settings.optimizer == "sgd" else 2


def lr_factor(schedule: LRSchedule, epoch: int, epochs: int) -> float:
    """Return the factor of the learning rate in ``epoch``, counted from 0."""
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    if schedule == "cooldown" and epoch > epochs / 2:
        # For an odd number of epochs the first value would be larger than 1.
        return min(1.0, 2 * (1 + epochs - epoch) / epochs)
    if schedule == "steps":
        return 0.25 ** sum(epoch >= share * epochs for share in STEPS_AT)
    return 1.0


def set_lr(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Set all learning rates to ``factor`` times their initial values."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
