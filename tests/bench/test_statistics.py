"""Means and intervals against the textbook formula."""

from __future__ import annotations

import math

import pytest

from bpfree.bench.statistics import estimate, paired_difference


def test_interval_is_students() -> None:
    values = [97.0, 98.0, 99.5, 98.5, 97.5]
    mean = sum(values) / 5
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / 4)
    found = estimate(values)
    assert found.mean == pytest.approx(mean)
    assert found.half == pytest.approx(2.7764451 * deviation / math.sqrt(5), rel=1e-6)  # t(0.975, 4)
    assert found.n == 5


def test_a_single_seed_has_no_interval() -> None:
    assert estimate([3.0]).half is None


def test_differences_are_paired_by_seed() -> None:
    found = paired_difference({1: 5.0, 2: 9.0, 3: 1.0}, {2: 8.0, 1: 4.0, 7: 0.0})
    assert found is not None
    assert (found.mean, found.half, found.n) == (1.0, 0.0, 2)
    assert paired_difference({1: 1.0}, {2: 1.0}) is None
