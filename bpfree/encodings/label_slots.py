"""A label as one of C values in front of the input (physical local learning)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfree.encodings.base import Encoding, View


class LabelSlots(Encoding, nn.Module):
    """Puts C values in front of the (flattened) sample: a label's is the amplitude, all others are 0.

    A training sample becomes a row with its own label, target 1, and rows with wrong ones, target 0; all
    positives stand first. ``candidates`` fills each slot in turn, ``[C * B]`` rows; ``neutral`` and ``plain``
    leave all at 0.

    Args:
        n_classes: Number of classes C.
        negatives: ``"random"``, one of the C-1 wrong labels, redrawn at every step; ``"all"`` of them.

    Attributes:
        amplitude: Value of a filled slot, in the unit of the samples; a buffer, 1 at first.
    """

    amplitude: Tensor

    def __init__(self, n_classes: int, negatives: Literal["random", "all"] = "random") -> None:
        nn.Module.__init__(self)
        self.n_classes, self.redraw = n_classes, negatives == "random"
        self.views = 2 if self.redraw else n_classes
        self.register_buffer("amplitude", torch.ones(()))

    def draw(self, y: Tensor, generator: torch.Generator, scores: Tensor | None = None) -> Tensor:
        """Wrong labels of each sample, ``[B, views - 1]``."""
        if self.redraw:
            offset = torch.randint(1, self.n_classes, (len(y), 1), generator=generator, device=y.device)
        else:
            offset = torch.arange(1, self.n_classes, device=y.device)
        return (y.unsqueeze(1) + offset) % self.n_classes

    def copies(self, view: View) -> int:
        return self.n_classes if view == "candidates" else 1

    def variants(self, x: Tensor) -> Tensor:
        return self.view(x, "candidates")

    def chosen_variants(self, y: Tensor, drawn: Tensor | None) -> tuple[Tensor, Tensor]:
        assert drawn is not None
        labels = torch.cat([y.unsqueeze(1), drawn], 1).T
        own = torch.arange(self.views, device=y.device) == 0
        return labels, own.long().repeat_interleave(len(y))

    def encode(self, x: Tensor, y: Tensor, drawn: Tensor | None) -> tuple[Tensor, Tensor]:
        labels, target = self.chosen_variants(y, drawn)
        return self.labelled(x, labels), target

    def labelled(self, x: Tensor, labels: Tensor) -> Tensor:
        """The samples ``x [B, ...]`` under ``labels [V, B]``, ``[V * B, C + d]``."""
        return self._slotted(x, F.one_hot(labels, self.n_classes))

    def view(self, x: Tensor, view: View) -> Tensor:
        if view == "candidates":
            return self._slotted(x, torch.eye(self.n_classes, device=x.device).unsqueeze(1))
        return self._slotted(x, torch.zeros(1, 1, self.n_classes, device=x.device))

    def _slotted(self, x: Tensor, codes: Tensor) -> Tensor:
        """Rows ``[V * B, C + d]`` of the samples ``x [B, ...]`` under the codes ``[V, B or 1, C]``."""
        x = x.flatten(1)
        codes = (codes * self.amplitude).to(x.dtype).expand(-1, len(x), -1)
        return torch.cat([codes, x.expand(len(codes), *x.shape)], 2).flatten(0, 1)
