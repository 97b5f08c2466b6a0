"""Closed-form gradients of a linear layer and an element-wise activation, without autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfree.nn.weights import is_plain

_aten = torch.ops.aten
#: An activation module. Each function is called with the type of its key only.
Activation: TypeAlias = Any
#: Computes the gradient with respect to the input of an activation from ``(activation, gradient with respect
#: to its output, output)``. These are the kernels that autograd calls; they overwrite the gradient.
BACKWARD: dict[type[nn.Module], Callable[[Activation, Tensor, Tensor], Tensor]] = {
    nn.ReLU: lambda _, error, out: _aten.threshold_backward(error, out, 0, grad_input=error),
    nn.ELU: lambda elu, error, out: _aten.elu_backward(error, elu.alpha, 1, 1, True, out, grad_input=error),
    nn.Tanh: lambda _, error, out: _aten.tanh_backward(error, out, grad_input=error),
}
#: Computes ``(activation, input)`` in place.
FORWARD: dict[type[nn.Module], Callable[[Activation, Tensor], Tensor]] = {
    nn.ReLU: lambda _, x: x.relu_(),
    nn.ELU: lambda elu, x: F.elu_(x, elu.alpha),
    nn.Tanh: lambda _, x: x.tanh_(),
}


def body_gradients(body: nn.Module, x: Tensor, output: Tensor, error: Tensor) -> dict[Tensor, Tensor]:
    """Gradients of the parameters of a body ``[Flatten] Linear [activation]``, without autograd.

    Args:
        body: The body. Without layers it has no gradients.
        x: Its input, ``[B, ...]``.
        output: Its output, ``[B, ...]``.
        error: Gradient of the loss with respect to the flattened output, ``[B, n]``. It is overwritten.

    Raises:
        TypeError: If the body has other layers.
    """
    layers = closed_form_layers(body)
    return {} if layers is None else layer_gradients(*layers, x, output, error)


def layer_gradients(
    linear: nn.Linear, activation: nn.Module | None, x: Tensor, output: Tensor, error: Tensor
) -> dict[Tensor, Tensor]:
    """`body_gradients`, given the layers that `closed_form_layers` returns."""
    if activation is not None:
        error = BACKWARD[type(activation)](activation, error, output.flatten(1))
    gradients = {}
    if linear.weight.requires_grad:
        gradients[linear.weight] = error.T @ x.flatten(1)
    if linear.bias is not None and linear.bias.requires_grad:
        gradients[linear.bias] = error.sum(0)
    return gradients


def closed_form_layers(body: nn.Module) -> tuple[nn.Linear, nn.Module | None] | None:
    """Return the linear layer and the activation of ``body``; None if it has no layers.

    Raises:
        TypeError: If the body has other layers, or hooks or parametrizations compute the layer's weight.
    """
    layers = list(body) if isinstance(body, nn.Sequential) else [body]
    layers = [layer for layer in layers if not isinstance(layer, nn.Flatten | nn.Unflatten | nn.Identity)]
    match layers:
        case []:
            return None
        case [nn.Linear() as linear] if is_plain(linear):
            return linear, None
        case [nn.Linear() as linear, activation] if type(activation) in BACKWARD and is_plain(linear):
            return linear, activation
    raise TypeError(
        "the closed form needs a linear layer and one of ReLU, ELU, Tanh, without hooks and "
        f"parametrizations, not {', '.join(type(layer).__name__ for layer in layers)}"
    )
