"""How the elements of a parameter lie in memory."""

from __future__ import annotations

import torch
from torch import Tensor


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one stretch of memory without gaps and without overlap, in any order."""
    extent = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != extent:
            return tensor.numel() == 0
        extent *= size
    return True


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether two elements are the same place in memory, as in an expanded tensor."""
    if is_dense(tensor):
        return False
    extent = sum(stride * (size - 1) for stride, size in zip(tensor.stride(), tensor.shape, strict=True)) + 1
    places = torch.arange(extent).as_strided(tensor.shape, tensor.stride())
    return len(places.unique()) < tensor.numel()


@torch.no_grad()
def lay_out_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Give each ``.grad`` the memory layout of its parameter, as autograd does: fused optimizers need it."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is not None and gradient.stride() != parameter.stride():
                parameter.grad = torch.empty_like(parameter).copy_(gradient)
