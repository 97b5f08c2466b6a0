"""Means, intervals and verdicts against textbook formulas, and against each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from bpfree.bench.statistics import (
    MARGIN_DIFFERENCE,
    MARGIN_RATIO,
    Verdict,
    estimate,
    holm,
    paired,
)


def seeds(values: list[float] | np.ndarray) -> dict[int, float]:
    return {seed: float(value) for seed, value in enumerate(values)}


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
    ours = {1: 0.50, 2: 0.90, 3: 0.10, 4: 0.72}
    theirs = {2: 0.80, 1: 0.48, 7: 0.0, 4: 0.66}
    found = paired(ours, theirs)
    d = np.array([0.02, 0.10, 0.06])
    half = 4.30265273 * d.std(ddof=1) / math.sqrt(3)  # t(0.975, 2)
    assert found is not None
    assert found.n == 3
    assert found.value == pytest.approx(0.06)
    assert found.student == pytest.approx((0.06 - half, 0.06 + half))
    assert paired({1: 1.0}, {2: 1.0}) is None


def test_a_ratio_is_the_geometric_mean_and_has_an_inverse() -> None:
    ours, theirs = seeds([2.0, 8.0, 5.0]), seeds([1.0, 2.0, 4.0])
    found, inverse = paired(ours, theirs, ratio=True), paired(theirs, ours, ratio=True)
    assert found is not None and inverse is not None
    assert found.value == pytest.approx((2.0 * 4.0 * 1.25) ** (1 / 3))
    assert inverse.value == pytest.approx(1 / found.value)
    assert found.student is not None and inverse.student is not None
    assert inverse.student == pytest.approx((1 / found.student[1], 1 / found.student[0]))
    assert inverse.p_equivalent == pytest.approx(found.p_equivalent)
    assert paired(seeds([0.0, 1.0]), seeds([1.0, 1.0]), ratio=True) is None


def test_bootstrap_of_two_pairs_is_their_range() -> None:
    # One resample of four is twice the lower pair, one twice the upper: each more than 2.5 %.
    found = paired(seeds([0.5, 0.9]), seeds([0.4, 0.4]))
    assert found is not None
    assert found.bootstrap == pytest.approx((0.1, 0.5))


def test_bootstrap_of_many_pairs_is_the_normal_interval() -> None:
    d = np.random.default_rng(3).normal(0.01, 0.002, 400)
    found = paired(seeds(d), seeds(np.zeros(400)))
    half = 1.959964 * d.std() / math.sqrt(400)
    assert found is not None
    assert found.bootstrap == pytest.approx((d.mean() - half, d.mean() + half), abs=0.1 * half)
    assert found.interval == found.bootstrap
    assert paired(seeds(d), seeds(np.zeros(400))) == found


@pytest.mark.parametrize("case", range(60))
def test_p_values_agree_with_the_intervals(case: int) -> None:
    """Different: the 95 % interval leaves out zero. Equivalent: the 90 % interval lies inside the margin."""
    draw, ratio = np.random.default_rng(case), bool(case % 2)
    n = int(draw.integers(5, 12))
    margin = math.log(MARGIN_RATIO) if ratio else MARGIN_DIFFERENCE
    a = draw.normal(0.5, 0.01, n)
    b = a + draw.normal(draw.uniform(-2, 2) * margin, draw.uniform(0.05, 1.5) * margin, n)
    found = paired(seeds(np.exp(a) if ratio else a), seeds(np.exp(b) if ratio else b), ratio)
    assert found is not None and found.p_different is not None and found.p_equivalent is not None
    d, error = a - b, (a - b).std(ddof=1) / math.sqrt(n)
    wide, narrow = (float(stats.t.ppf(level, n - 1)) * error for level in (0.975, 0.95))
    different = abs(d.mean()) > wide
    equivalent = abs(d.mean()) + narrow < margin
    assert (found.p_different < 0.05) == different
    assert (found.p_equivalent < 0.05) == equivalent
    assert (
        found.verdict
        is {
            (True, True): Verdict.NEGLIGIBLE,
            (True, False): Verdict.DIFFERENT,
            (False, True): Verdict.EQUIVALENT,
            (False, False): Verdict.INCONCLUSIVE,
        }[different, equivalent]
    )


def test_each_verdict_is_reached() -> None:
    noise = np.array([-2, -1, 0, 1, 2]) * 1e-4
    cases = {0.0: Verdict.EQUIVALENT, 0.001: Verdict.NEGLIGIBLE, 0.01: Verdict.DIFFERENT}
    for shift, verdict in cases.items():
        found = paired(seeds(0.9 + shift + noise), seeds(np.full(5, 0.9)))
        assert found is not None and found.verdict is verdict
    loose = paired(seeds(0.9 + 40 * noise), seeds(np.full(5, 0.9)))
    assert loose is not None and loose.verdict is Verdict.INCONCLUSIVE


def test_few_seeds_decide_nothing_that_is_sampled() -> None:
    ours, theirs = [0.9, 0.9001, 0.9002, 0.9001], [0.5] * 4
    found = paired(seeds(ours), seeds(theirs))
    assert found is not None and found.p_different is not None and found.p_different < 1e-6
    assert found.verdict is Verdict.INCONCLUSIVE
    same = paired(seeds([3.0]), seeds([2.0]), ratio=True)
    assert same is not None and same.verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        (2.0, Verdict.EQUIVALENT),
        (2.02, Verdict.NEGLIGIBLE),
        (2.2, Verdict.DIFFERENT),
        (1.0, Verdict.DIFFERENT),
    ],
)
def test_what_is_counted_needs_one_seed(ours: float, verdict: Verdict) -> None:
    found = paired({4: ours}, {4: 2.0}, ratio=True, counted=True)
    assert found is not None
    assert (found.verdict, found.exact, found.needed) == (verdict, True, None)
    assert found.value == pytest.approx(ours / 2)


def test_holm_by_hand() -> None:
    draw = np.random.default_rng(0)
    effects = [
        paired(seeds(draw.normal(0.9 + shift, 0.01, 6)), seeds(np.full(6, 0.9))) for shift in (0, 0.01, 0.03)
    ]
    known = [effect for effect in effects if effect is not None]
    raw = [effect.p_different for effect in known if effect.p_different is not None]
    assert len(raw) == 3
    order = np.argsort(raw)
    expected, least = {}, 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (3 - rank) * raw[i]))
        expected[int(i)] = least
    adjusted = holm(known)
    assert [effect.p_different for effect in adjusted] == pytest.approx([expected[i] for i in range(3)])
    assert [effect.student for effect in adjusted] == [effect.student for effect in known]
    assert holm([]) == []


@pytest.mark.parametrize(("shift", "spread"), [(0.01, 0.008), (0.004, 0.006), (0.02, 0.05)])
def test_seeds_needed_have_the_power_and_one_fewer_has_not(shift: float, spread: float) -> None:
    pattern = np.array([-1.5, -0.5, 0.0, 0.5, 1.5])
    d = shift + spread * pattern / pattern.std(ddof=1)
    found = paired(seeds(0.5 + d), seeds(np.full(5, 0.5)))

    def power(n: int) -> float:
        """Of the two-sided t test at 5 %, by the noncentral t distribution."""
        far, limit = shift / spread * math.sqrt(n), stats.t.ppf(0.975, n - 1)
        return float(stats.nct.sf(limit, n - 1, far) + stats.nct.cdf(-limit, n - 1, far))

    assert found is not None and found.needed is not None
    assert power(found.needed) >= 0.8 > power(found.needed - 1)


def test_seeds_needed_for_equivalence_have_the_power() -> None:
    spread, pattern = 0.006, np.array([-1.5, -0.5, 0.0, 0.5, 1.5])
    d = spread * pattern / pattern.std(ddof=1)
    found = paired(seeds(0.5 + d), seeds(np.full(5, 0.5)))
    assert found is not None and found.needed is not None
    draw, hits, runs = np.random.default_rng(1), 0, 400
    for _ in range(runs):
        again = draw.normal(0, spread, found.needed)
        half = stats.t.ppf(0.95, found.needed - 1) * again.std(ddof=1) / math.sqrt(found.needed)
        hits += abs(again.mean()) + half < MARGIN_DIFFERENCE
    assert hits / runs > 0.8 - 3 * math.sqrt(0.8 * 0.2 / runs)


@pytest.mark.parametrize("n", [9, 10, 11])
def test_from_ten_pairs_on_the_bootstrap_interval_is_shown(n: int) -> None:
    rng = np.random.default_rng(n)
    found = paired(seeds(rng.normal(0.5, 0.1, n)), seeds(rng.normal(0.4, 0.1, n)))
    assert found is not None
    assert found.student != found.bootstrap
    assert found.interval == (found.student if n < 10 else found.bootstrap)


def test_rounding_does_not_hide_a_tie() -> None:
    ours = seeds([0.1 + 0.2, 0.7, 0.4, 0.9, 0.5])
    theirs = seeds([0.3, 0.7, 0.1 + 0.3, 0.9, 0.5])
    assert ours != theirs
    found = paired(ours, theirs)
    assert found is not None and found.exact
    assert found.verdict is Verdict.EQUIVALENT
    assert found.p_different == 1.0
