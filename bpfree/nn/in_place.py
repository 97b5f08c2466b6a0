"""ReLUs that may overwrite their input: nobody else needs what a layer with weights has answered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

#: Layers whose backward pass does not look at their output.
BELOW = (nn.Linear, _ConvNd, _BatchNorm)


def overwriting(body: nn.Module) -> list[nn.ReLU]:
    """The ReLUs in ``body`` that stand right behind such a layer, wherever they stand in it.

    Only what plain `nn.Sequential`s hold is looked at: what a module of another kind does with an output
    cannot be known, nor what a hook does.
    """
    layers = list(_layers(body))
    found: dict[nn.ReLU, bool] = {}
    for below, layer in pairwise([None, *layers]):
        if type(layer) is nn.ReLU and not layer.inplace:
            safe = isinstance(below, BELOW) and not below._forward_hooks
            found[layer] = found.get(layer, True) and safe
    inside = {part for layer in layers for part in layer.modules() if part is not layer} if found else set()
    return [layer for layer, safe in found.items() if safe and layer not in inside]


def _layers(body: nn.Module) -> Iterator[nn.Module]:
    if type(body) is nn.Sequential:
        for layer in body:
            yield from _layers(layer)
    else:
        yield body


@contextmanager
def in_place(relus: Iterable[nn.ReLU]) -> Iterator[None]:
    """Inside, ``relus`` overwrite their input; what they answer has the same bits."""
    for relu in relus:
        relu.inplace = True
    try:
        yield
    finally:
        for relu in relus:
            relu.inplace = False
