"""Ridge regression from sums over samples: one pass, any order and sharding, and samples can be taken out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bpfree._errors import BadValue

#: Columns of the Gram matrix that are updated at once; what lies below the diagonal blocks is left out.
COLUMNS = 512


class RidgeAccumulator:
    """The Gram matrix ``G = sum phi phi^T`` and the moments ``R = sum phi y^T`` of a stream of samples.

    All that ridge regression needs to know of the samples, in float64: the features themselves are never
    kept. Sums do not care about order, so accumulators of shards can be merged, and samples taken out again,
    with the result of a refit up to rounding. That holds for fixed features alone: where the features were
    fitted to the samples, those samples stay in them.

    Args:
        n_features: Length d of a feature vector.
        n_outputs: Length C of a target, or number of classes.
        intercept: Whether to fit a constant beside the features.
        device: Where the sums are kept.

    Attributes:
        gram: ``[d, d]`` (d + 1 with an intercept), of which the part above the diagonal is kept up to date.
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
                f"a ridge of {n_features} features and {n_outputs} outputs: expected at least 1 each"
            )
        self.n_features, self.n_outputs, self.intercept, self.count = n_features, n_outputs, intercept, 0
        rows = n_features + intercept
        self.gram = torch.zeros(rows, rows, dtype=torch.float64, device=device)
        self.moments = torch.zeros(rows, n_outputs, dtype=torch.float64, device=device)

    def add(self, features: Tensor, targets: Tensor) -> RidgeAccumulator:
        """Take samples in.

        Args:
            features: ``[B, d]``.
            targets: ``[B, C]``, or class labels ``[B]``, which stand for their one-hot codes.

        Returns:
            Itself.

        Raises:
            BadValue: If the shapes do not fit.
        """
        return self._sum(features, targets, 1)

    def forget(self, features: Tensor, targets: Tensor) -> RidgeAccumulator:
        """Take samples out that were taken in before; arguments, result and errors as for `add`.

        Raises:
            BadValue: Also if there are more than were taken in. Whether they are the same cannot be known.
        """
        if len(features) > self.count:
            raise BadValue(f"forget: {len(features)} samples to take out, only {self.count} were taken in")
        return self._sum(features, targets, -1)

    def merge(self, other: RidgeAccumulator) -> RidgeAccumulator:
        """Take in all samples of another accumulator; returns itself.

        Raises:
            BadValue: If the other has another shape.
        """
        ours, theirs = ((a.n_features, a.n_outputs, a.intercept) for a in (self, other))
        if ours != theirs:
            raise BadValue(
                f"merge: (features, outputs, intercept) are {ours} here and {theirs} there; make them equal"
            )
        self.gram += other.gram.to(self.gram.device)
        self.moments += other.moments.to(self.moments.device)
        self.count += other.count
        return self

    def solve(self, lam: float) -> tuple[Tensor, Tensor]:
        """The weights that minimise ``sum |W^T phi + b - y|^2 + lam tr(G)/d |W|^2``, by Cholesky.

        The penalty is in units of the features' mean square, and spares the intercept. Of several weights
        that do it (where features are constant or depend on each other, and the penalty is 0) it is the
        shortest.

        Args:
            lam: Strength of the penalty, without a unit, at least 0.

        Returns:
            ``W [d, C]`` and ``b [C]`` (zeros without an intercept), float64.

        Raises:
            BadValue: If ``lam`` is negative, there are no samples, or they hold NaN or infinite values.
        """
        return self.solve_all([lam])[0]

    def solve_all(self, lams: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
        """`solve` for several penalties."""
        if self.count == 0:
            raise BadValue("solve: no samples were taken in")
        d = self.n_features
        system = self.gram.triu() + self.gram.triu(1).T
        own = system.diagonal()[:d].clone()
        return [self._solve(system, own, lam) for lam in lams]

    def _solve(self, system: Tensor, own: Tensor, lam: float) -> tuple[Tensor, Tensor]:
        if not lam >= 0:
            raise BadValue(f"lam = {lam}: expected at least 0")
        d = self.n_features
        system.diagonal()[:d] = own + lam * own.mean()
        factor, failed = torch.linalg.cholesky_ex(system)
        if failed or (lam == 0 and is_degenerate(factor)):
            return self._shortest(system)
        found = torch.cholesky_solve(self.moments, factor)
        bias = found[d] if self.intercept else found.new_zeros(self.n_outputs)
        return found[:d], bias

    def _shortest(self, system: Tensor) -> tuple[Tensor, Tensor]:
        """The shortest weights that solve a singular ``system``, and their intercept."""
        d = self.n_features
        products, moments = system[:d, :d], self.moments[:d]
        if not self.intercept:
            return shortest(products, moments), moments.new_zeros(self.n_outputs)
        sums, totals = system[:d, d], self.moments[d]
        products = products - torch.outer(sums, sums) / self.count
        weight = shortest(products, moments - torch.outer(sums, totals) / self.count)
        return weight, (totals - sums @ weight) / self.count

    def _sum(self, features: Tensor, targets: Tensor, sign: int) -> RidgeAccumulator:
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


def is_degenerate(factor: Tensor) -> bool:
    """Whether a Cholesky factor's smallest pivot is nothing but rounding."""
    pivots = factor.diagonal().square()
    return bool(pivots.min() <= len(pivots) * torch.finfo(pivots.dtype).eps * pivots.max())


def shortest(system: Tensor, right: Tensor) -> Tensor:
    """The shortest ``x`` that minimizes ``|system x - right|``, for a symmetric positive semidefinite system.

    Raises:
        BadValue: If the system is not finite.
    """
    if not system.isfinite().all():
        raise BadValue("solve: the samples hold NaN or infinite values")
    values, vectors = torch.linalg.eigh(system)
    least = len(values) * torch.finfo(values.dtype).eps * values.abs().max()
    inverse = torch.where(values > least, 1 / values, 0.0)
    found: Tensor = vectors @ (inverse.unsqueeze(1) * (vectors.T @ right))
    return found
