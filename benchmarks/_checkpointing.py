"""Backpropagation with activation checkpointing at some block boundaries."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Checkpointed(nn.Module):
    """Layers of which only the input is saved for the backward pass.

    Args:
        layers: The layers in order.
        reentrant: Which of the two implementations of torch recomputes. The reentrant one runs an ordinary
            backward pass over the layers, so that `bpfree.meters.saved_for_backward` counts what it saves
            meanwhile; it needs an input with a gradient, which costs one more product in the lowest layer.
    """

    def __init__(self, layers: Sequence[nn.Module], reentrant: bool = False) -> None:
        super().__init__()
        self.layers, self.reentrant = nn.Sequential(*layers), reentrant

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return self.layers(x)  # type: ignore[no-any-return]
        if self.reentrant and not x.requires_grad:
            x = x.detach().requires_grad_()
        return checkpoint(self.layers, x, use_reentrant=self.reentrant, preserve_rng_state=False)  # type: ignore[no-any-return]


def square_root(stages: Sequence[nn.Module], reentrant: bool = False) -> list[nn.Module]:
    """``n`` stages in about ``sqrt(n)`` checkpointed groups of about ``sqrt(n)`` stages, which needs the
    least memory if each stage is recomputed once (Chen et al., arXiv 1604.06174)."""
    size = math.ceil(math.sqrt(len(stages)))
    return [Checkpointed(stages[i : i + size], reentrant) for i in range(0, len(stages), size)]
