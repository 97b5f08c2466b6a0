"""Samplers and pruners, made from their names."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, GridSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from bpfree import _seeds
from bpfree.trainers import Choice, Dimension
from bpfree.tune.plan import Arm, Plan

#: Random trials before the estimator takes over, and complete ones before the median prunes.
STARTUP_TRIALS = 5


#: Complete trials that must have reported after as many passes before the median of them prunes.
MEDIAN_TRIALS = 4

#: Set on a trial that was drawn and handed back, because others had taken all that were left.
HANDED_BACK = "handed_back"


#: Where Optuna's callback for stale trials puts the number of the first attempt.
RETRIED = "failed_trial"


class Numbered(BaseSampler):
    """Draws for each trial from a stream of its own, which follows from how many were proposed before it.

    A sampler with one stream begins it anew in each process: a command that goes on with a study would draw
    the numbers of its beginning again, and two commands on one study would draw the same. Trials that are
    tried again are no new proposals: after an interruption the next ones are what they would have been.

    Args:
        make: Gives the sampler for the trial that is proposed after so many others.
    """

    def __init__(self, make: Callable[[int], BaseSampler]) -> None:
        self.make, self.number = make, -1
        self.inner: BaseSampler | None = None

    def _of(self, study: optuna.Study, trial: FrozenTrial) -> BaseSampler:
        if self.inner is None or self.number != trial.number:
            self.inner, self.number = self.make(_proposed_before(study, trial)), trial.number
        return self.inner

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._of(study, trial).before_trial(study, trial)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._of(study, trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._of(study, trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._of(study, trial).sample_independent(study, trial, param_name, param_distribution)


def _proposed_before(study: optuna.Study, trial: FrozenTrial) -> int:
    """How many trials were proposed before this one, or before the first attempt at it."""
    number = trial.system_attrs.get(RETRIED, trial.number)
    return sum(
        other.number < number and RETRIED not in other.system_attrs and HANDED_BACK not in other.user_attrs
        for other in study.get_trials(deepcopy=False)
    )


def make_sampler(plan: Plan, arm: Arm) -> BaseSampler:
    """The plan's sampler for an arm's study; arms draw from different streams."""
    tune = plan.tune

    def make(number: int) -> BaseSampler:
        seed = _seeds.derive(tune.seed, "tune", arm.label, number) % 2**32
        if tune.sampler == "grid":
            # All trials share one order of the points: its seed is that of none of them.
            return GridSampler(arm.grid, seed=tune.seed)
        if tune.sampler == "random":
            return RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS, constant_liar=True)

    return Numbered(make)


def make_pruner(plan: Plan, arm: Arm) -> BasePruner:
    """The plan's pruner; a step is a pass over the data, counted through all seeds of a trial."""
    if plan.tune.pruner == "median":
        warmup = max(1, arm.cells[0].fit.epochs // 4)
        return MedianPruner(STARTUP_TRIALS, n_warmup_steps=warmup, n_min_trials=MEDIAN_TRIALS)
    if plan.tune.pruner == "hyperband":
        return HyperbandPruner(min_resource=max(1, arm.passes // 9), max_resource=arm.passes)
    return NopPruner()


def distributions(arm: Arm, grid: bool) -> dict[str, BaseDistribution]:
    """What an arm's trials are asked for."""
    return {
        name: CategoricalDistribution(arm.grid[name]) if grid else _distribution(dimension)
        for name, dimension in arm.space.items()
    }


def _distribution(dimension: Dimension) -> BaseDistribution:
    if isinstance(dimension, Choice):
        values: Sequence[Any] = dimension.values
        return CategoricalDistribution(values)
    if isinstance(dimension.low, int) and isinstance(dimension.high, int):
        return IntDistribution(dimension.low, dimension.high, log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
