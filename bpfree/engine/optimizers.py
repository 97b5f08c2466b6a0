"""The optimizers of a cascade: one for each block, and one for each readout with parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bpfree._errors import BadValue
from bpfree.core.cascade import Cascade
from bpfree.core.readouts import Readout
from bpfree.engine.settings import TrainerSettings, make_optimizer
from bpfree.losses import FeedbackLoss
from bpfree.nn.layout import overlaps_itself


def update_readout(
    readout: Readout, optimizer: torch.optim.Optimizer, outputs: list[Tensor], y: Tensor
) -> Tensor:
    """Update a readout with parameters on detached outputs; return its loss."""
    loss = readout.objective(outputs, y)
    with torch.autocast(y.device.type, enabled=False):
        loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def hyperparameters(optimizer: torch.optim.Optimizer) -> list[dict[str, object]]:
    """Return the learning rate and all other hyperparameters of each parameter group."""
    return [
        {key: value for key, value in group.items() if key not in ("params", "initial_lr")}
        for group in optimizer.param_groups
    ]


def replaced_optimizers(
    cascade: Cascade,
    optimizers: Mapping[str, torch.optim.Optimizer],
    made: Mapping[str, torch.optim.Optimizer],
) -> dict[str, torch.optim.Optimizer]:
    """Return the optimizers that the user has replaced, by name.

    Args:
        cascade: The blocks; a user can set the optimizer of a block.
        optimizers: The optimizers of the trainer by name; a user can replace an item.
        made: The optimizers that the trainer has made, by name.

    Raises:
        BadValue: If an optimizer has parameters of another block, or if two are set for one block.
    """
    blocks = {f"block{k}": block for k, block in enumerate(cascade.units)}
    replaced = {}
    for name, original in made.items():
        current = [optimizers.get(name), blocks[name].optimizer if name in blocks else None]
        others = list({id(o): o for o in current if o is not None and o is not original}.values())
        if len(others) > 1:
            raise BadValue(
                f"optimizers[{name!r}] and the optimizer of that block were set to different optimizers; set "
                "only one of them"
            )
        for optimizer in others:
            allowed = {id(p) for group in original.param_groups for p in group["params"]}
            params = [p for group in optimizer.param_groups for p in group["params"]]
            if not {id(p) for p in params} <= allowed:
                raise BadValue(
                    f"the optimizer that was set for {name} has parameters that do not belong to {name}; use "
                    f"only parameters of trainer.optimizers[{name!r}].param_groups"
                )
            replaced[name] = optimizer
    return replaced


def make_optimizers(cascade: Cascade, settings: TrainerSettings) -> dict[str, torch.optim.Optimizer]:
    """Return an optimizer for each block and for each readout with parameters, by name.

    Raises:
        BadValue: If elements of a parameter share memory.
    """
    optimizers = {}
    _check_memory(cascade)
    for k, block in enumerate(cascade.units):
        feedback_losses = (loss for loss in block.losses if isinstance(loss, FeedbackLoss))
        feedback = [p for loss in feedback_losses for p in loss.feedback_parameters()]
        feedback_ids = {id(p) for p in feedback}
        forward = [p for p in block.trainable() if id(p) not in feedback_ids]
        other_groups = [(feedback, settings.feedback_rate())] if feedback else []
        optimizers[f"block{k}"] = make_optimizer(forward, settings, other_groups=other_groups)
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
                f"{parameter.stride()}), so that an update of one changes others; replace it by "
                "nn.Parameter(weight.detach().contiguous()), or freeze it"
            )
