"""Held-out R^2 against devices whose R^2 is known, and what cannot be fitted."""

from __future__ import annotations

import numpy as np
import pytest

from bpfree._errors import BadValue
from bpfree.physics import r_squared
from bpfree.physics.diagnostics import nonlinearity_index, polynomial_features


def test_features_are_the_inputs_and_their_products() -> None:
    u = np.array([[2.0, 3.0, 5.0]])
    np.testing.assert_array_equal(polynomial_features(u, 1), [[1, 2, 3, 5]])
    np.testing.assert_array_equal(polynomial_features(u, 2), [[1, 2, 3, 5, 4, 6, 10, 9, 15, 25]])


def test_the_index_is_the_share_of_variance_that_no_linear_map_explains() -> None:
    u = np.random.default_rng(0).uniform(-1, 1, (40_000, 2))
    # x and y = x^2 - 1/3 are orthogonal over [-1, 1]; their variances are 1/3 and 4/45.
    mixed = (u[:, :1] + u[:, 1:] ** 2) @ np.ones((1, 3))
    assert nonlinearity_index(u, mixed) == pytest.approx((4 / 45) / (1 / 3 + 4 / 45), rel=0.02)
    assert nonlinearity_index(u, u @ np.ones((2, 3)) - 4) == pytest.approx(0, abs=1e-12)
    assert r_squared(u, mixed, degree=2) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("u", "y", "options", "why"),
    [
        (np.zeros((8, 2)), np.zeros((7, 2)), {}, r"u is \[8, 2\] and y \[7, 2\]; expected"),
        (np.zeros((8, 2)), np.zeros(8), {}, r"y \[8\]; expected \[N, n_in\] and \[N, n_out\]"),
        (np.eye(8), np.eye(8), {}, "8 rows leave 6 to fit 9 coefficients; measure at least 13 rows"),
        (np.eye(8)[:, :2], np.ones((8, 1)), {}, "do not vary with the drive"),
        (np.eye(8)[:, :2], np.full((8, 1), np.nan), {}, "y"),
        (np.eye(8)[:, :2], np.eye(8), {"degree": 3}, "degree = 3: expected 1 or 2"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    u: np.ndarray, y: np.ndarray, options: dict[str, int], why: str
) -> None:
    with pytest.raises(BadValue, match=why):
        r_squared(u, y, **options)


def test_as_many_rows_as_the_message_names_are_enough() -> None:
    rng = np.random.default_rng(1)
    u = rng.random((13, 8))
    assert r_squared(u, u) == pytest.approx(1)
    with pytest.raises(BadValue, match="measure at least 13 rows"):
        r_squared(u[:11], u[:11])
