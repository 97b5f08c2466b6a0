"""Ridge regression from sums over samples: in one pass, in any order, in shards, with removal of samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bpfree._errors import BadValue

#: Columns of the Gram matrix that are updated at once. Elements below the diagonal blocks are not computed.
COLUMNS = 512


class RidgeAccumulator:
    """The Gram matrix ``G = sum phi phi^T`` and the moments ``R = sum phi y^T`` of a stream of samples.

    Ridge regression depends on the samples only by these sums, in float64; the features are not stored. The
    sums do not depend on the order of samples, so accumulators of shards can be merged, and samples can be
    removed. The result equals that of a new fit up to rounding. This holds for fixed features only: removing
    a sample does not remove its influence on features that were trained on it.

    Args:
        n_features: Length d of a feature vector.
        n_outputs: Length C of a target, or number of classes.
        intercept: Whether to fit an intercept.
        device: Device of the sums.

    Attributes:
        gram: ``[d, d]`` (d + 1 with an intercept). Only the upper triangle is complete.
        moments: ``[d, C]`` (d + 1 with an intercept).
        count: Number of samples.
    """

    def __init__(
        self,
        n_features: int,
        n_outputs: int,
        intercept: bool = True,
        device: str | torch.device | None = None,
    ) -> None:
        if n_features < 1 or n_outputs < 1:
            raise BadValue(
                f"ridge regression on {n_features} features and {n_outputs} outputs: expected at least 1 each"
            )
        self.n_features, self.n_outputs, self.intercept, self.count = n_features, n_outputs, intercept, 0
        rows = n_features + intercept
        self.gram = torch.zeros(rows, rows, dtype=torch.float64, device=device)
        self.moments = torch.zeros(rows, n_outputs, dtype=torch.float64, device=device)

    def add(self, features: Tensor, targets: Tensor) -> RidgeAccumulator:
        """Add samples.

        Args:
            features: ``[B, d]``.
            targets: ``[B, C]``, or class labels ``[B]``, which are converted to one-hot vectors.

        Returns:
            This object.

        Raises:
            BadValue: If the shapes are wrong.
        """
        return self._sum(features, targets, 1)

    def forget(self, features: Tensor, targets: Tensor) -> RidgeAccumulator:
        """Remove samples that were added before; arguments, result and errors as for `add`.

        Raises:
            BadValue: Also if more samples are removed than were added. It is not checked that they are the
                same samples.
        """
        if len(features) > self.count:
            raise BadValue(
                f"forget: {len(features)} samples, but the sums have only {self.count}; "
                "pass samples that were added"
            )
        return self._sum(features, targets, -1)

    def merge(self, other: RidgeAccumulator) -> RidgeAccumulator:
        """Add all samples of another accumulator, and return this one.

        Raises:
            BadValue: If the shapes differ.
        """
        sizes, other_sizes = ((a.n_features, a.n_outputs, a.intercept) for a in (self, other))
        if sizes != other_sizes:
            raise BadValue(
                f"merge: (features, outputs, intercept) are {sizes} of this accumulator and {other_sizes} "
                "of the other; make them equal"
            )
        self.gram += other.gram.to(self.gram.device)
        self.moments += other.moments.to(self.moments.device)
        self.count += other.count
        return self

    def solve(self, lam: float) -> tuple[Tensor, Tensor]:
        """Compute the weights that minimize ``sum |W^T phi + b - y|^2 + lam tr(G)/d |W|^2``, by Cholesky.

        The penalty is in units of the features' mean square and does not include the intercept. If several
        weights are minimal (with constant or linearly dependent features, and no penalty), the result has the
        smallest norm.

        Args:
            lam: Strength of the penalty, without a unit, at least 0.

        Returns:
            ``W [d, C]`` and ``b [C]`` (zeros without an intercept), float64.

        Raises:
            BadValue: If ``lam`` is negative, there are no samples, or they have NaN or infinite values.
        """
        return self.solve_all([lam])[0]

    def solve_all(self, lams: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
        """`solve` for several penalties."""
        if self.count == 0:
            raise BadValue("solve: no samples were added; call add first")
        d = self.n_features
        system = self.gram.triu() + self.gram.triu(1).T
        squares = system.diagonal()[:d].clone()
        return [self._solve(system, squares, lam) for lam in lams]

    def _solve(self, system: Tensor, squares: Tensor, lam: float) -> tuple[Tensor, Tensor]:
        """Solve for one penalty; overwrite ``system``. ``squares [d]`` is the Gram matrix's diagonal."""
        if not lam >= 0:
            raise BadValue(f"lam = {lam}: expected at least 0")
        d = self.n_features
        system.diagonal()[:d] = squares + lam * squares.mean()
        factor, failed = torch.linalg.cholesky_ex(system)
        if failed or (lam == 0 and is_singular(factor)):
            return self._minimum_norm(system)
        solution = torch.cholesky_solve(self.moments, factor)
        bias = solution[d] if self.intercept else solution.new_zeros(self.n_outputs)
        return solution[:d], bias

    def _minimum_norm(self, system: Tensor) -> tuple[Tensor, Tensor]:
        """The weights of minimum norm that solve a singular ``system``, and their intercept."""
        d = self.n_features
        products, moments = system[:d, :d], self.moments[:d]
        if not self.intercept:
            return minimum_norm(products, moments), moments.new_zeros(self.n_outputs)
        sums, totals = system[:d, d], self.moments[d]
        products = products - torch.outer(sums, sums) / self.count
        weight = minimum_norm(products, moments - torch.outer(sums, totals) / self.count)
        return weight, (totals - sums @ weight) / self.count

    def _sum(self, features: Tensor, targets: Tensor, sign: int) -> RidgeAccumulator:
        """Add samples with ``sign`` 1, or remove them with ``sign`` -1."""
        if features.ndim != 2 or features.shape[1] != self.n_features:
            raise BadValue(f"features are {list(features.shape)}; expected [B, {self.n_features}]")
        if targets.ndim == 1 and not targets.is_floating_point():
            targets = F.one_hot(targets, self.n_outputs)
        if targets.shape != (len(features), self.n_outputs):
            raise BadValue(
                f"targets are {list(targets.shape)}; expected [{len(features)}, {self.n_outputs}] "
                f"or {len(features)} class labels"
            )
        phi = features.to(self.gram)
        if self.intercept:
            phi = F.pad(phi, (0, 1), value=1.0)
        for start in range(0, phi.shape[1], COLUMNS):
            stop = start + COLUMNS
            self.gram[:stop, start:stop].addmm_(phi[:, :stop].T, phi[:, start:stop], alpha=sign)
        self.moments.addmm_(phi.T, targets.to(phi), alpha=sign)
        self.count += sign * len(features)
        return self


def is_singular(factor: Tensor) -> bool:
    """Whether the smallest pivot of a Cholesky factor is a rounding error."""
    pivots = factor.diagonal().square()
    return bool(pivots.min() <= len(pivots) * torch.finfo(pivots.dtype).eps * pivots.max())


def minimum_norm(system: Tensor, right: Tensor) -> Tensor:
    """Return the ``x`` of minimum norm that minimizes ``|system x - right|``.

    Args:
        system: Symmetric positive semidefinite, ``[n, n]``.
        right: ``[n, C]``.

    Raises:
        BadValue: If the system is not finite.
    """
    if not system.isfinite().all():
        raise BadValue("solve: the samples have NaN or infinite values; check the features")
    values, vectors = torch.linalg.eigh(system)
    threshold = len(values) * torch.finfo(values.dtype).eps * values.abs().max()
    inverse = torch.where(values > threshold, 1 / values, 0.0)
    solution: Tensor = vectors @ (inverse.unsqueeze(1) * (vectors.T @ right))
    return solution
