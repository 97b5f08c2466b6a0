"""Ridge regression where there are fewer samples than features: solved among the samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bpfree._errors import BadValue
from bpfree.losses.ridge import COLUMNS, is_degenerate, shortest


class DualRidge:
    """The solution of `RidgeAccumulator` by way of the n x n matrix of inner products of n samples.

    ``W = Phi^T (Phi Phi^T + lam tr(G)/d I)^-1 Y``, all centred where there is an intercept. It costs n^2 d
    and n^3 instead of n d^2 and d^3, and keeps the samples.

    Args:
        n_features: Length d of a feature vector.
        n_outputs: Length C of a target, or number of classes.
        intercept: Whether to fit a constant beside the features.
    """

    def __init__(self, n_features: int, n_outputs: int, intercept: bool = True) -> None:
        self.n_features, self.n_outputs, self.intercept = n_features, n_outputs, intercept
        self._features: list[Tensor] = []
        self._targets: list[Tensor] = []

    def add(self, features: Tensor, targets: Tensor) -> DualRidge:
        """Take samples in.

        Args:
            features: ``[B, d]``.
            targets: Class labels ``[B]``.

        Returns:
            Itself.
        """
        self._features.append(features.double())
        self._targets.append(F.one_hot(targets, self.n_outputs).double())
        return self

    def solve_all(self, lams: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
        """For each penalty ``W [d, C]`` and ``b [C]``, float64, as `RidgeAccumulator.solve_all`.

        Raises:
            BadValue: If there are no samples, or they hold NaN or infinite values.
        """
        if not self._features:
            raise BadValue("solve: no samples were taken in")
        phi, y = torch.cat(self._features), torch.cat(self._targets)
        unit = phi.square().sum() / self.n_features
        mean, offset = phi.new_zeros(self.n_features), y.new_zeros(self.n_outputs)
        if self.intercept:
            mean, offset = phi.mean(0), y.mean(0)
            phi, y = phi - mean, y - offset
        products, found = _lower(phi), []
        for lam in lams:
            system = products.clone()
            system.diagonal().add_(lam * unit)
            factor, failed = torch.linalg.cholesky_ex(system)
            if failed or (lam == 0 and is_degenerate(factor)):
                # The part below the diagonal is kept up to date.
                weight = phi.T @ shortest(system.tril() + system.tril(-1).T, y)
            else:
                weight = phi.T @ torch.cholesky_solve(y, factor)
            found.append((weight, offset - mean @ weight))
        return found


def _lower(phi: Tensor) -> Tensor:
    """Inner products of the rows of ``phi``, ``[n, n]``: those at and below the diagonal, by blocks."""
    found = phi.new_zeros(len(phi), len(phi))
    for start in range(0, len(phi), COLUMNS):
        stop = start + COLUMNS
        torch.mm(phi[start:], phi[start:stop].T, out=found[start:, start:stop])
    return found
