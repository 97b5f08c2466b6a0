"""Modules of a user's network that are frozen and in evaluation mode."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


def is_trainable(module: nn.Module) -> bool:
    """Whether a parameter of the module requires a gradient."""
    return any(p.requires_grad for p in module.parameters())


def frozen_modules(part: nn.Module) -> list[nn.Module]:
    """Return the modules of ``part`` that are frozen and in evaluation mode.

    Returns only ``part`` itself if this holds for all its modules with parameters.
    """
    with_parameters = [m for m in part.modules() if m._parameters]
    if with_parameters and not any(m.training for m in with_parameters) and not is_trainable(part):
        return [part]
    parametrized = (m for m in part.modules() if next(m.parameters(), None) is not None)
    frozen = [m for m in parametrized if not m.training and not is_trainable(m)]
    if any(m.training for m in part.modules()):
        # If other layers are in training mode, the user has set these to evaluation mode on purpose.
        frozen += [m for m in part.modules() if isinstance(m, _NormBase) and not m.affine and not m.training]
    return frozen
