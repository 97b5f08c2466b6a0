"""Label codes as C additional values before the input (physical local learning)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfree._renamed import warn_renamed
from bpfree.encodings.base import Encoding, View


class LabelSlots(Encoding, nn.Module):
    """Concatenates a scaled one-hot label and the flattened sample: ``[C + d]`` values per row.

    A training sample has one row with its label and the target 1, and rows with wrong labels and the target
    0. The positive rows come first. The ``candidates`` view has one row for each label, ``[C * B]`` rows. In
    the ``neutral`` and ``plain`` views the C label values are 0.

    Args:
        n_classes: Number of classes C.
        negatives: Wrong labels of a sample: ``"random"``, one label that is drawn at each step; or ``"all"``.

    Attributes:
        amplitude: Value of the label, in the unit of the samples; a buffer, initially 1.
    """

    amplitude: Tensor

    def __init__(self, n_classes: int, negatives: Literal["random", "all"] = "random") -> None:
        nn.Module.__init__(self)
        self.n_classes, self.redraw = n_classes, negatives == "random"
        self.views = 2 if self.redraw else n_classes
        self.register_buffer("amplitude", torch.ones(()))

    def draw(self, y: Tensor, generator: torch.Generator, scores: Tensor | None = None) -> Tensor:
        """Return wrong labels of each sample, ``[B, views - 1]``."""
        if self.redraw:
            offset = torch.randint(1, self.n_classes, (len(y), 1), generator=generator, device=y.device)
        else:
            offset = torch.arange(1, self.n_classes, device=y.device)
        return (y.unsqueeze(1) + offset) % self.n_classes

    def copies(self, view: View) -> int:
        return self.n_classes if view == "candidates" else 1

    def variants(self, x: Tensor) -> Tensor:
        return self.view(x, "candidates")

    def chosen_variants(self, y: Tensor, random_part: Tensor | None) -> tuple[Tensor, Tensor]:
        assert random_part is not None
        labels = torch.cat([y.unsqueeze(1), random_part], 1).T
        is_positive = torch.arange(self.views, device=y.device) == 0
        return labels, is_positive.long().repeat_interleave(len(y))

    def encode(self, x: Tensor, y: Tensor, random_part: Tensor | None) -> tuple[Tensor, Tensor]:
        labels, target = self.chosen_variants(y, random_part)
        return self.labeled(x, labels), target

    def labeled(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return the samples ``x [B, ...]`` with ``labels [V, B]``, ``[V * B, C + d]``."""
        return self._with_codes(x, F.one_hot(labels, self.n_classes))

    def labelled(self, x: Tensor, labels: Tensor) -> Tensor:
        """Old name of `labeled`."""
        warn_renamed("LabelSlots.labelled", "LabelSlots.labeled")
        return self.labeled(x, labels)

    def view(self, x: Tensor, view: View) -> Tensor:
        if view == "candidates":
            return self._with_codes(x, torch.eye(self.n_classes, device=x.device).unsqueeze(1))
        return self._with_codes(x, torch.zeros(1, 1, self.n_classes, device=x.device))

    def _with_codes(self, x: Tensor, codes: Tensor) -> Tensor:
        """Concatenate the codes ``[V, B or 1, C]`` and the samples ``x [B, ...]`` to ``[V * B, C + d]``."""
        x = x.flatten(1)
        codes = (codes * self.amplitude).to(x.dtype).expand(-1, len(x), -1)
        return torch.cat([codes, x.expand(len(codes), *x.shape)], 2).flatten(0, 1)
