"""What may be done to gradients between the backward pass and the step, one block at a time."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch


def condition(optimizers: Iterable[torch.optim.Optimizer], clip: float | None, centralize: bool) -> None:
    """Have each optimizer centralise, then clip, its gradients before it steps.

    Each group of parameters is clipped by its own Euclidean norm: nothing is compared across optimizers.

    Args:
        optimizers: One for each block.
        clip: Largest norm; None for any.
        centralize: Whether to take off the mean over all but the first axis of matrices and filters.
    """
    for optimizer in optimizers:
        optimizer.register_step_pre_hook(partial(_condition, clip=clip, centralize=centralize))


def _condition(optimizer: torch.optim.Optimizer, *_: Any, clip: float | None, centralize: bool) -> None:
    for group in optimizer.param_groups:
        grads = [p.grad for p in group["params"] if p.grad is not None]
        if centralize:
            for grad in grads:
                if grad.ndim > 1:
                    grad.sub_(grad.mean(tuple(range(1, grad.ndim)), keepdim=True))
        if clip is not None and grads:
            torch.nn.utils.clip_grad_norm_(group["params"], clip)
