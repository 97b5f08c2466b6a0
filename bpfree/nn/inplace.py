"""ReLUs that may overwrite their input, because the backward pass of the layer below does not need it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

#: Layers whose backward pass does not use their output.
BELOW = (nn.Linear, _ConvNd, _BatchNorm)


def overwritable_relus(body: nn.Module) -> list[nn.ReLU]:
    """Return the ReLUs of ``body`` that may work in place, because each directly follows a layer of `BELOW`.

    Only nested `nn.Sequential`s are searched. Another module, or a hook, may use the output that a ReLU would
    overwrite. A ReLU that occurs several times is returned only if every occurrence may work in place.
    """
    layers = list(_flatten(body))
    safe: dict[nn.ReLU, bool] = {}
    for below, layer in pairwise([None, *layers]):
        if type(layer) is nn.ReLU and not layer.inplace:
            safe_here = isinstance(below, BELOW) and not below._forward_hooks
            safe[layer] = safe.get(layer, True) and safe_here
    inner = {part for layer in layers for part in layer.modules() if part is not layer} if safe else set()
    return [layer for layer, is_safe in safe.items() if is_safe and layer not in inner]


def _flatten(body: nn.Module) -> Iterator[nn.Module]:
    if type(body) is nn.Sequential:
        for layer in body:
            yield from _flatten(layer)
    else:
        yield body


@contextmanager
def overwrite_inputs(relus: Iterable[nn.ReLU]) -> Iterator[None]:
    """Context manager: ``relus`` work in place. Their outputs are the same, bit for bit."""
    for relu in relus:
        relu.inplace = True
    try:
        yield
    finally:
        for relu in relus:
            relu.inplace = False
