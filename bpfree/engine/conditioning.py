"""Centralization and clipping of the gradients of each block before its optimizer step."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch


def condition(optimizers: Iterable[torch.optim.Optimizer], clip: float | None, centralize: bool) -> None:
    """Register hooks that centralize, then clip, gradients before each optimizer step.

    Each parameter group is clipped by its own Euclidean norm, so that blocks do not depend on one another.

    Args:
        optimizers: One for each block.
        clip: Largest norm; None: no clipping.
        centralize: Whether to subtract from the gradients of matrices and kernels their mean over all axes
            but the first.
    """
    for optimizer in optimizers:
        optimizer.register_step_pre_hook(partial(_condition, clip=clip, centralize=centralize))


def _condition(optimizer: torch.optim.Optimizer, *_: object, clip: float | None, centralize: bool) -> None:
    for group in optimizer.param_groups:
        grads = [p.grad for p in group["params"] if p.grad is not None]
        if centralize:
            for grad in grads:
                if grad.ndim > 1:
                    grad.sub_(grad.mean(tuple(range(1, grad.ndim)), keepdim=True))
        if clip is not None and grads:
            torch.nn.utils.clip_grad_norm_(group["params"], clip)
