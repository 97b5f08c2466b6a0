"""The optimizers of a cascade: one for each block, and one for each readout that learns."""

from __future__ import annotations

import torch
from torch import Tensor

from bpfree.cascade import Cascade
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
    """An optimizer for each block and for each readout that learns, by name."""
    optimizers = {}
    for k, block in enumerate(cascade.units):
        feedback = [p for loss in block.losses for p in loss.feedback_parameters()]
        apart = {id(p) for p in feedback}
        forward = [p for p in block.trainable() if id(p) not in apart]
        optimizers[f"block{k}"] = optimizer = make_optimizer(forward, settings)
        if feedback:
            lr = getattr(settings, "feedback_lr", None)
            optimizer.add_param_group({"params": feedback, "lr": settings.lr if lr is None else lr})
    for name in cascade.readouts:
        readout = cascade.readout(name)
        if readout.learns:
            lr, decay = getattr(settings, "readout_lr", None), getattr(settings, "readout_weight_decay", None)
            optimizers[f"readout.{name}"] = make_optimizer(readout.parameters(), settings, lr, decay)
    return optimizers
