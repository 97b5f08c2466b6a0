"""The optimizers of a cascade: one for each block, and one for each readout that learns."""

from __future__ import annotations

import torch
from torch import Tensor

from bpfree._errors import BadValue
from bpfree.cascade import Cascade
from bpfree.nn.layout import overlaps_itself
from bpfree.readouts import Readout
from bpfree.trainers.settings import TrainerSettings, make_optimizer


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


def make_optimizers(cascade: Cascade, settings: TrainerSettings) -> dict[str, torch.optim.Optimizer]:
    """An optimizer for each block and for each readout that learns, by name.

    Raises:
        BadValue: If elements of a parameter share memory with one another.
    """
    optimizers = {}
    _check_memory(cascade)
    for k, block in enumerate(cascade.units):
        feedback = [p for loss in block.losses for p in loss.feedback_parameters()]
        sending = {id(p) for p in feedback}
        forward = [p for p in block.trainable() if id(p) not in sending]
        lr = getattr(settings, "feedback_lr", None)
        apart = [(feedback, settings.lr if lr is None else lr)] if feedback else []
        optimizers[f"block{k}"] = make_optimizer(forward, settings, apart=apart)
    for name in cascade.readouts:
        readout = cascade.readout(name)
        if readout.learns:
            lr, decay = getattr(settings, "readout_lr", None), getattr(settings, "readout_weight_decay", None)
            optimizers[f"readout.{name}"] = make_optimizer(readout.parameters(), settings, lr, decay)
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
