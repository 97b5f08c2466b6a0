"""Small problems of any shape that a linear model solves: a pattern for each class plus noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bpfree.data import TensorData


@dataclass(frozen=True)
class Samples:
    """Samples ``x [N, ...]`` in float32 with labels ``y [N]`` of ``n_classes`` classes."""

    x: Tensor
    y: Tensor
    n_classes: int

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """Samples and labels as a pair of tensors."""
        return self.x, self.y

    @property
    def data(self) -> TensorData:
        """The samples as `TensorData`."""
        return TensorData(self.x, self.y, self.n_classes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a sample."""
        return tuple(self.x.shape[1:])


def samples(*shape: int, n: int = 48, classes: int = 3, noise: float = 0.1, seed: int = 0) -> Samples:
    """Noisy patterns with values from 0 to 1; all classes are equally frequent."""
    draw = torch.Generator().manual_seed(seed + 1)
    pattern = (torch.rand(classes, *shape, generator=torch.Generator().manual_seed(77)) > 0.5).float()
    y = torch.arange(n) % classes
    x = 0.1 + 0.8 * pattern[y] + noise * (torch.rand(n, *shape, generator=draw) - 0.5)
    return Samples(x, y, classes)


def blank_margin(s: Samples) -> Samples:
    """The images with a constant first row."""
    x = s.x.clone()
    x.flatten(1)[:, : x.shape[-1]] = 0
    return Samples(x, s.y, s.n_classes)
