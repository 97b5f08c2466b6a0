"""Modules that were passed frozen and in evaluation mode, and stay so."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


def learns(module: nn.Module) -> bool:
    """Whether a parameter of the module is not frozen."""
    return any(p.requires_grad for p in module.parameters())


def frozen_modules(part: nn.Module) -> list[nn.Module]:
    """The frozen modules of ``part`` in evaluation mode; ``part`` alone if all with parameters are so."""
    with_parameters = [m for m in part.modules() if m._parameters]
    if with_parameters and not any(m.training for m in with_parameters) and not learns(part):
        return [part]
    holding = (m for m in part.modules() if next(m.parameters(), None) is not None)
    frozen = [m for m in holding if not m.training and not learns(m)]
    if any(m.training for m in part.modules()):
        # Beside layers in training mode, a normalization that has statistics alone was set so on purpose.
        frozen += [m for m in part.modules() if isinstance(m, _NormBase) and not m.affine and not m.training]
    return frozen
