"""Ridge regression in dual form, for fewer samples than features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bpfree._errors import BadValue
from bpfree.losses.ridge import COLUMNS, is_singular, minimum_norm


class DualRidge:
    """The solution of `RidgeAccumulator`, computed from the n x n matrix of inner products of n samples.

    ``W = Phi^T (Phi Phi^T + lam tr(G)/d I)^-1 Y``, with centered features and targets if there is an
    intercept. The cost is n^2 d and n^3 instead of n d^2 and d^3. The samples are stored.

    Args:
        n_features: Length d of a feature vector.
        n_outputs: Length C of a target, or number of classes.
        intercept: Whether to fit an intercept.
    """

    def __init__(self, n_features: int, n_outputs: int, intercept: bool = True) -> None:
        self.n_features, self.n_outputs, self.intercept = n_features, n_outputs, intercept
        self._features: list[Tensor] = []
        self._targets: list[Tensor] = []

    def add(self, features: Tensor, targets: Tensor) -> DualRidge:
        """Add samples.

        Args:
            features: ``[B, d]``.
            targets: Class labels ``[B]``.

        Returns:
            This object.
        """
        self._features.append(features.double())
        self._targets.append(F.one_hot(targets, self.n_outputs).double())
        return self

    def solve_all(self, lams: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
        """Return ``W [d, C]`` and ``b [C]``, float64, for each penalty, as `RidgeAccumulator.solve_all` does.

        Raises:
            BadValue: If there are no samples, or they have NaN or infinite values.
        """
        if not self._features:
            raise BadValue("solve: no samples were added; call add first")
        phi, y = torch.cat(self._features), torch.cat(self._targets)
        unit = phi.square().sum() / self.n_features
        mean, offset = phi.new_zeros(self.n_features), y.new_zeros(self.n_outputs)
        if self.intercept:
            mean, offset = phi.mean(0), y.mean(0)
            phi, y = phi - mean, y - offset
        products, solutions = _lower_triangle(phi), []
        for lam in lams:
            system = products.clone()
            system.diagonal().add_(lam * unit)
            factor, failed = torch.linalg.cholesky_ex(system)
            if failed or (lam == 0 and is_singular(factor)):
                # Only the lower triangle is complete.
                weight = phi.T @ minimum_norm(system.tril() + system.tril(-1).T, y)
            else:
                weight = phi.T @ torch.cholesky_solve(y, factor)
            solutions.append((weight, offset - mean @ weight))
        return solutions


def _lower_triangle(phi: Tensor) -> Tensor:
    """Inner products of the rows of ``phi``, ``[n, n]``, at and below the diagonal, computed in blocks."""
    products = phi.new_zeros(len(phi), len(phi))
    for start in range(0, len(phi), COLUMNS):
        stop = start + COLUMNS
        torch.mm(phi[start:], phi[start:stop].T, out=products[start:, start:stop])
    return products
