"""The optimizers of a cascade: one for each block, and one for each readout that learns."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bpfree._errors import BadValue
from bpfree._types import JsonObject
from bpfree.core.cascade import Cascade
from bpfree.core.readouts import Readout
from bpfree.engine.settings import TrainerSettings, make_optimizer
from bpfree.losses import FeedbackLoss
from bpfree.nn.layout import overlaps_itself


def update_readout(
    readout: Readout, optimizer: torch.optim.Optimizer, outputs: list[Tensor], y: Tensor
) -> Tensor:
    """One step of a readout that learns, on detached outputs; returns its loss."""
    loss = readout.objective(outputs, y)
    with torch.autocast(y.device.type, enabled=False):
        loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def hyperparameters(optimizer: torch.optim.Optimizer) -> list[JsonObject]:
    """Learning rate and all else that each group of parameters is updated with."""
    return [
        {key: value for key, value in group.items() if key not in ("params", "initial_lr")}
        for group in optimizer.param_groups
    ]


def replaced_optimizers(
    cascade: Cascade,
    optimizers: Mapping[str, torch.optim.Optimizer],
    made: Mapping[str, torch.optim.Optimizer],
) -> dict[str, torch.optim.Optimizer]:
    """The optimizers that are others than those which were ``made``, by name.

    Args:
        cascade: The blocks, which hold an optimizer each.
        optimizers: The trainer's, by name.
        made: What the trainer has made.

    Raises:
        BadValue: If one moves parameters of another block, or two were set for one block.
    """
    units = {f"block{k}": block for k, block in enumerate(cascade.units)}
    found = {}
    for name, own in made.items():
        given = [optimizers.get(name), units[name].optimizer if name in units else None]
        others = list({id(o): o for o in given if o is not None and o is not own}.values())
        if len(others) > 1:
            raise BadValue(
                f"optimizers[{name!r}] and the optimizer of that block were both set, to different ones: set "
                "one of them"
            )
        for optimizer in others:
            allowed = {id(p) for group in own.param_groups for p in group["params"]}
            params = [p for group in optimizer.param_groups for p in group["params"]]
            if not {id(p) for p in params} <= allowed:
                raise BadValue(
                    f"the optimizer that was set for {name} holds parameters which are not those of {name}: "
                    f"give it parameters out of trainer.optimizers[{name!r}].param_groups"
                )
            found[name] = optimizer
    return found


def make_optimizers(cascade: Cascade, settings: TrainerSettings) -> dict[str, torch.optim.Optimizer]:
    """An optimizer for each block and for each readout that learns, by name.

    Raises:
        BadValue: If elements of a parameter share memory with one another.
    """
    optimizers = {}
    _check_memory(cascade)
    for k, block in enumerate(cascade.units):
        sending_losses = (loss for loss in block.losses if isinstance(loss, FeedbackLoss))
        feedback = [p for loss in sending_losses for p in loss.feedback_parameters()]
        sending = {id(p) for p in feedback}
        forward = [p for p in block.trainable() if id(p) not in sending]
        apart = [(feedback, settings.feedback_rate())] if feedback else []
        optimizers[f"block{k}"] = make_optimizer(forward, settings, apart=apart)
    for name in cascade.readouts:
        readout = cascade.readout(name)
        if readout.learns:
            optimizers[f"readout.{name}"] = make_optimizer(
                readout.parameters(), settings, settings.readout_rate(), settings.readout_decay()
            )
    return optimizers


def _check_memory(cascade: Cascade) -> None:
    trained = {id(p) for block in cascade.units for p in block.trainable()}
    for name, parameter in cascade.named_parameters():
        if id(parameter) in trained and overlaps_itself(parameter):
            raise BadValue(
                f"{name} {list(parameter.shape)} has elements that share memory (strides "
                f"{parameter.stride()}), and an update of one would change others: replace it by "
                "nn.Parameter(weight.detach().contiguous()), or freeze it"
            )
