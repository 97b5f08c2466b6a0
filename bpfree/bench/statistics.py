"""Means, intervals and verdicts over seeds, by the tests of SciPy and statsmodels.

The unit is the seed. Two arms are compared on their common seeds, pair by pair: shares such as the accuracy
by their difference, costs by their ratio. Ratios are computed in logarithms, so that A against B is the
inverse of B against A.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from bpfree.bench.files import Mapped

#: A run within its arm: the seed, or the seeds of the model and of the device.
Run = int | tuple[int, int]

ALPHA = 0.05
RESAMPLES = 10_000

#: With fewer pairs no verdict is given, unless the value is exact.
MIN_SEEDS = 5

#: With fewer pairs Student's interval is shown in place of the bootstrap's, which is then too narrow.
FEW = 10

#: Margins of equivalence: a quarter of a point of a share, and 5 % of a cost.
MARGIN_DIFFERENCE = 0.0025
MARGIN_RATIO = 1.05

POWER = 0.8


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: The mean.
        half: Half the width of its 95 % t interval; None for a single seed.
        n: Number of seeds.
    """

    mean: float
    half: float | None
    n: int


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % interval (Student's t) of independent values."""
    from scipy import stats

    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return Estimate(mean, None, n)
    return Estimate(mean, float(stats.sem(values) * stats.t.ppf(1 - ALPHA / 2, n - 1)), n)


class Verdict(StrEnum):
    """The verdict of a paired comparison."""

    EQUIVALENT = "EQUIVALENT"
    DIFFERENT = "DIFFERENT"
    NEGLIGIBLE = "DIFFERENT-BUT-NEGLIGIBLE"
    INCONCLUSIVE = "INCONCLUSIVE"


Interval = tuple[float, float]


@dataclass(frozen=True)
class Effect:
    """One arm against another, over their common seeds.

    Attributes:
        value: Mean difference, or geometric mean of the ratios.
        ratio: Whether ``value`` is a ratio.
        n: Number of pairs.
        student: 95 % t interval of ``value``; None for a single pair.
        bootstrap: 95 % interval from resampled pairs (percentiles); None for a single pair.
        p_different: Of the paired t test, null hypothesis: no difference. None where it cannot be tested.
        p_equivalent: Of two one-sided tests (TOST), null hypothesis: outside of the margin.
        exact: Whether the value does not vary over seeds: it is counted, or was equal each time.
        needed: Pairs with which a verdict is expected (power 0.8) if value and spread stay the same; None if
            the spread is unknown.
    """

    value: float
    ratio: bool
    n: int
    student: Interval | None
    bootstrap: Interval | None
    p_different: float | None
    p_equivalent: float | None
    exact: bool
    needed: int | None

    @property
    def interval(self) -> Interval | None:
        """The interval to show: Student's for few pairs, else the bootstrap's."""
        return self.student if self.n < FEW else self.bootstrap

    @property
    def verdict(self) -> Verdict:
        """The verdict of the two p values; inconclusive for fewer than `MIN_SEEDS` pairs, unless exact."""
        if self.p_different is None or self.p_equivalent is None or (self.n < MIN_SEEDS and not self.exact):
            return Verdict.INCONCLUSIVE
        different, equivalent = self.p_different < ALPHA, self.p_equivalent < ALPHA
        if different:
            return Verdict.NEGLIGIBLE if equivalent else Verdict.DIFFERENT
        return Verdict.EQUIVALENT if equivalent else Verdict.INCONCLUSIVE


def paired(
    ours: Mapping[Run, float], theirs: Mapping[Run, float], ratio: bool = False, counted: bool = False
) -> Effect | None:
    """Compare two arms by seed.

    Args:
        ours: A value of each seed.
        theirs: The same of the other arm.
        ratio: Whether to compare by ``ours / theirs``; all values must then be positive.
        counted: Whether the value is counted, not sampled: if all pairs agree, one is enough.

    Returns:
        The effect; None without a common seed, or if a ratio is undefined.
    """
    seeds = sorted(ours.keys() & theirs.keys(), key=lambda run: run if isinstance(run, tuple) else (run,))
    a, b = np.array([ours[s] for s in seeds]), np.array([theirs[s] for s in seeds])
    if not seeds or (ratio and (min(a) <= 0 or min(b) <= 0)):
        return None
    if ratio:
        a, b = np.log(a), np.log(b)
    margin = math.log(MARGIN_RATIO) if ratio else MARGIN_DIFFERENCE
    d = a - b
    value, n = float(d.mean()), len(seeds)
    same = bool(np.ptp(d) <= 1e-12 * max(1.0, float(np.abs(d).max())))

    def back(interval: tuple[float, float]) -> Interval:
        low, high = (math.exp(x) if ratio else float(x) for x in interval)
        return low, high

    effect = Effect(
        value=math.exp(value) if ratio else value,
        ratio=ratio,
        n=n,
        student=None,
        bootstrap=None,
        p_different=None,
        p_equivalent=None,
        exact=False,
        needed=None,
    )
    if same and (counted or n >= MIN_SEEDS):
        point = back((value, value))
        return replace(
            effect,
            student=point,
            bootstrap=point,
            p_different=float(abs(value) <= 1e-12),
            p_equivalent=float(abs(value) >= margin),
            exact=True,
        )
    if n < 2 or same:
        return effect
    return replace(
        effect,
        student=back(_student(d)),
        bootstrap=back(_bootstrap(d)),
        p_different=_p_different(a, b),
        p_equivalent=_p_equivalent(a, b, margin),
        needed=_needed(abs(value), float(d.std(ddof=1)), margin),
    )


def _student(d: np.ndarray) -> Interval:
    from scipy import stats

    low, high = stats.ttest_1samp(d, 0.0).confidence_interval(1 - ALPHA)
    return float(low), float(high)


def _bootstrap(d: np.ndarray) -> Interval:
    from scipy import stats

    # A generator with a fixed seed: the same rows give the same report.
    result = stats.bootstrap(
        (d,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=1 - ALPHA,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _p_different(a: np.ndarray, b: np.ndarray) -> float:
    from scipy import stats

    return float(stats.ttest_rel(a, b).pvalue)


def _p_equivalent(a: np.ndarray, b: np.ndarray, margin: float) -> float:
    from statsmodels.stats.weightstats import ttost_paired

    return float(ttost_paired(a, b, -margin, margin)[0])


def _needed(distance: float, spread: float, margin: float) -> int:
    """Pairs needed to show a difference of this size, or equivalence, whichever are fewer.

    Equivalence needs both one-sided tests, so each has the power ``(1 + POWER) / 2``; by Bonferroni's
    inequality both together have at least `POWER`.
    """
    from statsmodels.stats.power import TTestPower

    power = TTestPower()

    def pairs(effect: float, target: float, alternative: str) -> float:
        # A search from two pairs upwards: the solver of statsmodels needs a bracket that contains the result.
        low, high = 2, 2
        while power.power(effect, high, ALPHA, alternative=alternative) < target:
            if high > 10**6:
                return math.inf
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            reached = power.power(effect, middle, ALPHA, alternative=alternative) >= target
            low, high = (low, middle) if reached else (middle, high)
        return high

    different = pairs(distance / spread, POWER, "two-sided") if distance > 0 else math.inf
    equivalent = (
        pairs((margin - distance) / spread, (1 + POWER) / 2, "larger") if distance < margin else math.inf
    )
    fewest = min(different, equivalent)
    return max(MIN_SEEDS, int(min(fewest, 10**6)))


def holm(effects: Sequence[Effect]) -> list[Effect]:
    """The effects of one family with both p values adjusted by Holm's method; intervals are not changed."""
    adjusted = list(effects)
    for name in ("p_different", "p_equivalent"):
        tested = [i for i, effect in enumerate(adjusted) if getattr(effect, name) is not None]
        if tested:
            values = _holm([getattr(adjusted[i], name) for i in tested])
            for i, value in zip(tested, values, strict=True):
                changed: Mapped = {name: value}
                adjusted[i] = replace(adjusted[i], **changed)
    return adjusted


def _holm(values: Sequence[float]) -> list[float]:
    """The p values times the number of those that are not smaller, made monotonic.

    Equal to statsmodels' ``multipletests``, which takes half a second per call for garbage collection.
    """
    order = np.argsort(values, kind="stable")
    scaled = np.asarray(values)[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(p) for p in adjusted]
