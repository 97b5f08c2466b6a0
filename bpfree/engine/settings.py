"""What every trainer can be told."""

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

#: Where the schedule ``steps`` quarters the learning rate, as shares of all epochs (arXiv 1901.06656).
STEPS_AT = (0.5, 0.75, 0.89, 0.94)


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """Settings of all trainers.

    Attributes:
        lr: Learning rate of every block.
        weight_decay: Weight decay of every block.
        optimizer: One optimizer of this kind per block.
        momentum: Momentum of SGD.
        lr_schedule: ``constant``; ``cosine``, from lr to 0; ``cooldown``, constant for half of the epochs
            and then falling linearly by 2/epochs an epoch, as in Forward-Forward's reference code; ``steps``,
            a quarter of it after 50, 75, 89 and 94 % of the epochs.
        schedule: ``simultaneous``; ``greedy``; ``pipelined``, as simultaneous by as many workers as torchrun
            starts.
        cache: Whether features of frozen blocks, and answers of fronts, are kept where they are constant.
        precision: ``bfloat16`` computes the products of a run (training, kept features, evaluation,
            prediction) in it, under autocast; weights and losses stay float32.
        channels_last: Whether convolutions' weights, and so their maps, lie with a pixel's channels together:
            faster on most machines, above all in bfloat16; a network of one's own must not `view` its maps.
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
        """Learning rate of the parameters that make feedback."""
        return self.lr

    def readout_rate(self) -> float:
        """Learning rate of readouts that learn."""
        return self.lr

    def readout_decay(self) -> float:
        """Weight decay of readouts that learn."""
        return self.weight_decay

    def cache_lifetime(self) -> int | None:
        """Epochs after which cached measurements of devices are made again; None: never."""
        return None


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """Settings of one call of `Trainer.fit`.

    Attributes:
        epochs: Passes over the training data, in each stage.
        batch_size: Samples per step; the last, shorter batch is used too, unless ``drop_last``.
        drop_last: Whether an epoch leaves out the samples of a last, shorter batch; others in each epoch.
        patience: Evaluations without a better value of the metric after which a stage stops; None: never.
        min_delta: Gain in the metric that counts as better; of an accuracy, 0.001 is a tenth of a point.
        restore_best: Whether a stage ends with the weights of its best evaluation.
        eval_every: Epochs between evaluations.
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
        """Steps of an epoch."""
        return n_samples // self.batch_size if self.drop_last else math.ceil(n_samples / self.batch_size)


def make_optimizer(
    parameters: Iterable[nn.Parameter],
    settings: TrainerSettings,
    lr: float | None = None,
    decay: float | None = None,
    apart: Iterable[tuple[Iterable[nn.Parameter], float]] = (),
) -> torch.optim.Optimizer:
    """An optimizer of ``parameters``, fused where it can be.

    Args:
        parameters: What it moves.
        settings: What kind it is, and its numbers.
        lr: Learning rate in place of the settings' own.
        decay: Weight decay in place of the settings' own.
        apart: Other parameters that it moves, with a learning rate each.
    """
    lr = settings.lr if lr is None else lr
    decay = settings.weight_decay if decay is None else decay
    # A block may have nothing for an optimizer to move: torch takes an empty group, not an empty list.
    groups: list[JsonObject] = [{"params": list(parameters)}]
    groups += [{"params": list(own), "lr": rate} for own, rate in apart]
    fused = all(_can_be_fused(p) for group in groups for p in group["params"])
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr, momentum=settings.momentum, weight_decay=decay, fused=fused)
    kind: type[torch.optim.Adam] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    return kind(groups, lr, weight_decay=decay, fused=fused)


def _can_be_fused(parameter: nn.Parameter) -> bool:
    """Whether a fused optimizer moves the right elements: it goes through the memory without gaps."""
    return parameter.is_floating_point() and parameter.device.type in ("cpu", "cuda") and is_dense(parameter)


def kept_values(settings: TrainerSettings) -> int:
    """How many values the optimizer keeps for each parameter."""
    return int(settings.momentum > 0) if settings.optimizer == "sgd" else 2


def lr_factor(schedule: LRSchedule, epoch: int, epochs: int) -> float:
    """What the learning rate is multiplied by in ``epoch``, counted from 0."""
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    if schedule == "cooldown" and epoch > epochs / 2:
        # With an odd number of epochs the line begins above 1.
        return min(1.0, 2 * (1 + epochs - epoch) / epochs)
    if schedule == "steps":
        return 0.25 ** sum(epoch >= share * epochs for share in STEPS_AT)
    return 1.0


def set_lr(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Set every learning rate to ``factor`` times what the optimizer was made with."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
