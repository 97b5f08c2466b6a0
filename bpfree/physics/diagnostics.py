"""How nonlinear a device is, told by how well a polynomial fits its answers."""

from __future__ import annotations

import numpy as np

from bpfree._errors import BadValue
from bpfree.physics.answers import numbers
from bpfree.physics.system import Array


def polynomial_features(u: Array, degree: int) -> Array:
    """1, the inputs, and for degree 2 all their products: ``[B, 1 + n (+ n (n+1) / 2)]`` of ``u [B, n]``."""
    if degree not in (1, 2):
        raise BadValue(f"degree = {degree}: expected 1 or 2")
    u = np.asarray(u, dtype=np.float64)
    parts = [np.ones((len(u), 1)), u]
    if degree == 2:
        i, j = np.triu_indices(u.shape[1])
        parts.append(u[:, i] * u[:, j])
    return np.concatenate(parts, axis=1)


def r_squared(u: Array, y: Array, degree: int = 1, held_out: float = 0.25) -> float:
    """Held-out R^2 of a polynomial least-squares fit of ``y [N, n_out]`` on ``u [N, n_in]``.

    The last ``held_out`` of the rows are predicted by a fit to the others. The squared errors of all outputs
    are summed before they are compared with the outputs' summed variance, so that outputs which hardly vary
    weigh little.

    Raises:
        BadValue: If there are fewer rows to fit than coefficients, the answers do not vary, or drives or
            answers are no real, finite numbers ``[N, ...]`` of one N.
    """
    try:
        u, y = numbers(u, "u"), np.asarray(numbers(y, "y"), np.float64)
    except ValueError as error:
        raise BadValue(str(error)) from None
    if u.ndim != 2 or y.ndim != 2 or len(u) != len(y):
        raise BadValue(
            f"u is {list(u.shape)} and y {list(y.shape)}; expected [N, n_in] and [N, n_out] of one N"
        )
    features = polynomial_features(u, degree)
    n_fit = len(features) - max(1, round(held_out * len(features)))
    if n_fit < features.shape[1]:
        raise BadValue(
            f"{len(features)} rows leave {n_fit} to fit {features.shape[1]} coefficients; "
            f"measure at least {int(np.ceil(features.shape[1] / (1 - held_out))) + 1} rows"
        )
    weights = np.linalg.lstsq(features[:n_fit], y[:n_fit], rcond=None)[0]
    test = y[n_fit:]
    variance = float(np.square(test - test.mean(0)).sum())
    if variance == 0:
        raise BadValue("the answers do not vary with the drive; is the device switched on?")
    return 1 - float(np.square(test - features[n_fit:] @ weights).sum()) / variance


def nonlinearity_index(u: Array, y: Array) -> float:
    """1 - R^2 of a held-out linear fit: 0 is a linear device, 1 one that no linear map predicts."""
    return 1 - r_squared(u, y, degree=1)
