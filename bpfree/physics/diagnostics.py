"""Nonlinearity of a device, measured by polynomial fits to its outputs."""

from __future__ import annotations

import numpy as np

from bpfree._errors import BadValue
from bpfree.physics.outputs import finite_array
from bpfree.physics.system import Array


def polynomial_features(u: Array, degree: int) -> Array:
    """Return a constant, the inputs and, for degree 2, all their products.

    ``u [B, n]`` to ``[B, 1 + n]`` for degree 1, ``[B, 1 + n + n (n + 1) / 2]`` for degree 2.

    Raises:
        BadValue: If ``degree`` is neither 1 nor 2.
    """
    if degree not in (1, 2):
        raise BadValue(f"degree = {degree}: expected 1 or 2")
    u = np.asarray(u, dtype=np.float64)
    parts = [np.ones((len(u), 1)), u]
    if degree == 2:
        i, j = np.triu_indices(u.shape[1])
        parts.append(u[:, i] * u[:, j])
    return np.concatenate(parts, axis=1)


def r_squared(u: Array, y: Array, degree: int = 1, held_out: float = 0.25) -> float:
    """Return the held-out R^2 of a polynomial least-squares fit of ``y [N, n_out]`` on ``u [N, n_in]``.

    The first rows are fitted and the last ``held_out`` of the rows predicted. The squared errors of all
    outputs are summed and divided by the summed variance of the outputs, so outputs with little variance have
    little weight.

    Raises:
        BadValue: If there are fewer fitted rows than coefficients, if the outputs do not vary, or if ``u``
            and ``y`` are not real, finite numbers of shape ``[N, ...]`` with the same N.
    """
    try:
        u, y = finite_array(u, "u"), np.asarray(finite_array(y, "y"), np.float64)
    except ValueError as error:
        raise BadValue(str(error)) from None
    if u.ndim != 2 or y.ndim != 2 or len(u) != len(y):
        raise BadValue(
            f"u is {list(u.shape)} and y {list(y.shape)}; expected [N, n_in] and [N, n_out] with the same N"
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
        raise BadValue("the outputs do not vary with the drive; is the device switched on?")
    return 1 - float(np.square(test - features[n_fit:] @ weights).sum()) / variance


def nonlinearity_index(u: Array, y: Array) -> float:
    """Return 1 - R^2 of a held-out linear fit: 0 for a linear device, 1 if a linear map predicts nothing."""
    return 1 - r_squared(u, y, degree=1)
