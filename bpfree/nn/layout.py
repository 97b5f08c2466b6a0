"""Memory layout of parameters and of their gradients."""

from __future__ import annotations

import torch
from torch import Tensor


def is_dense(tensor: Tensor) -> bool:
    """Return whether the elements fill a range of memory without gaps or overlap, in any order."""
    extent = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != extent:
            return tensor.numel() == 0
        extent *= size
    return True


def overlaps_itself(tensor: Tensor) -> bool:
    """Return whether two elements share a memory location, as in an expanded tensor."""
    if is_dense(tensor):
        return False
    extent = sum(stride * (size - 1) for stride, size in zip(tensor.stride(), tensor.shape, strict=True)) + 1
    locations = torch.arange(extent).as_strided(tensor.shape, tensor.stride())
    return len(locations.unique()) < tensor.numel()


@torch.no_grad()
def match_gradient_strides(optimizer: torch.optim.Optimizer) -> None:
    """Give each ``.grad`` the strides of its parameter, as autograd does: fused optimizers require it."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is not None and gradient.stride() != parameter.stride():
                parameter.grad = torch.empty_like(parameter).copy_(gradient)
