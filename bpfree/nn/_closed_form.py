"""Gradients of a linear layer and an element-wise activation in closed form, without autograd."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

#: Derivative of an activation, told by its output.
DERIVATIVES: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.ReLU: lambda out: (out > 0).to(out.dtype),
    nn.ELU: lambda out: torch.where(out > 0, torch.ones_like(out), out + 1),
    nn.Tanh: lambda out: 1 - out.square(),
}


def body_gradients(body: nn.Module, x: Tensor, output: Tensor, error: Tensor) -> None:
    """Set ``.grad`` of a body ``[Flatten] Linear [activation]``, given the loss's gradient by its output.

    A body without layers has nothing to set.

    Args:
        body: The body.
        x: Its input, ``[B, ...]``.
        output: Its output, ``[B, ...]``.
        error: Gradient of the loss by the flattened output, ``[B, n]``.

    Raises:
        TypeError: If the body is made of anything else.
    """
    layers = list(body) if isinstance(body, nn.Sequential) else [body]
    layers = [layer for layer in layers if not isinstance(layer, nn.Flatten | nn.Unflatten | nn.Identity)]
    match layers:
        case []:
            return
        case [nn.Linear() as linear]:
            pass
        case [nn.Linear() as linear, activation] if type(activation) in DERIVATIVES:
            error = error * DERIVATIVES[type(activation)](output).flatten(1)
        case _:
            raise TypeError(f"the closed form needs a linear layer and one of ReLU, ELU, Tanh, not {body}")
    linear.weight.grad = error.T @ x.flatten(1)
    if linear.bias is not None:
        linear.bias.grad = error.sum(0)
