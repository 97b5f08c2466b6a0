"""The cosine of a block's output with a fixed random direction: the objective of physical local learning."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bpfree import _seeds
from bpfree._errors import BadValue
from bpfree.losses.base import ClosedFormLoss, ClosedFormStep

Reference = Literal["gaussian", "rademacher"]

#: Makes the gradient of an output's norm finite at zero.
EPS = 1e-12


class PairCosine(ClosedFormLoss):
    """Aligns rows with their own label with xi, and rows with a wrong one against it (Momeni et al., Science
    382, 1297).

    With ``z [rows, n]`` the block's (flattened) output and xi a fixed random unit vector of the block::

        a = |z| ;  g = a . xi / sqrt(|a|^2 + 1e-12)                            # the goodness, [rows]
        loss = mean over pairs of softplus(-theta (g_pos - g_neg))

    Since a >= 0, units with xi_i > 0 increase g and the others decrease it, and g is between -|min(xi, 0)|
    and |max(xi, 0)|. All positive rows come first. The negative rows follow in the same order, as many times
    as there are negatives to each.

    Args:
        theta: Inverse temperature of the pair loss; no threshold.
        negatives: Negatives to each positive; None: all C - 1 wrong labels.
        reference: Distribution of xi's components before it is normalized.
        seed: Seed of xi alone.
        number: Number of the block, so that blocks have different directions.
    """

    by_row = True
    xi: Tensor

    def __init__(
        self,
        theta: float = 4.0,
        negatives: int | None = 1,
        reference: Reference = "gaussian",
        seed: int = 0,
        number: int = 0,
    ) -> None:
        super().__init__()
        if reference not in ("gaussian", "rademacher"):
            raise BadValue(f"reference = {reference!r}: expected 'gaussian' or 'rademacher'")
        if not theta > 0:
            raise BadValue(f"theta = {theta}: expected an inverse temperature of more than 0")
        self.theta, self.negatives, self.reference = theta, negatives, reference
        self.seed, self.number = seed, number

    def build(self, output: Tensor, n_classes: int) -> None:
        generator = _seeds.generator(torch.device("cpu"), self.seed, "reference", self.number)
        xi = torch.randn(output[0].numel(), generator=generator)
        if self.reference == "rademacher":
            xi = torch.where(xi < 0, -1.0, 1.0)
        self.register_buffer("xi", F.normalize(xi.to(output.device, output.dtype), dim=0))
        if self.negatives is None:
            self.negatives = n_classes - 1

    def goodness(self, output: Tensor) -> Tensor:
        """``g [rows]`` of the block's output ``[rows, ...]``."""
        a = output.flatten(1).abs()
        return (a @ self.xi) / (a.square().sum(1) + EPS).sqrt()

    def scores(self, output: Tensor) -> Tensor:
        """``g``, ``[rows, 1]``: the sum of it over blocks is the goodness readout's score."""
        return self.goodness(output).unsqueeze(1)

    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        return F.softplus(-self.theta * self._margin(self.goodness(output))).mean()

    def closed_form(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> ClosedFormStep:
        assert self.negatives is not None
        z = output.flatten(1)
        norm = (z.square().sum(1, keepdim=True) + EPS).sqrt()
        direction = z.abs() / norm
        g = direction @ self.xi
        slope = (self.xi - g.unsqueeze(1) * direction).mul_(z.sign()).div_(norm)
        by_view = g.view(1 + self.negatives, -1)
        margin = by_view[:1] - by_view[1:]
        # The gradient by the margin of a pair: negative for its positive row, positive for its negative one.
        margin_grad = self.theta * torch.sigmoid(-self.theta * margin) / margin.numel()
        weight = torch.cat([-margin_grad.sum(0), margin_grad.flatten()])
        error = slope.mul_(weight.unsqueeze(1)).view_as(output)
        return ClosedFormStep(F.softplus(-self.theta * margin).mean(), error, {})

    def _margin(self, g: Tensor) -> Tensor:
        """``g_pos - g_neg`` of each pair, ``[negatives, positives]``."""
        assert self.negatives is not None
        by_view = g.view(1 + self.negatives, -1)
        return by_view[:1] - by_view[1:]
