"""Samplers and pruners by name."""

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
from bpfree.bench.files import Mapped
from bpfree.trainers import Choice, Dimension
from bpfree.tune.plan import Plan, TunedArm

#: Random trials before the estimator starts, and complete ones before the median prunes.
STARTUP_TRIALS = 5


#: Complete trials with a report after as many epochs that the median needs to prune.
MEDIAN_TRIALS = 4

#: Attribute of a trial that was returned at once, because other commands had taken the last ones.
HANDED_BACK = "handed_back"


#: Attribute in which Optuna's callback for stale trials stores the number of the first attempt.
RETRIED = "failed_trial"


class Numbered(BaseSampler):
    """Samples each trial with a random stream of its own, seeded by the number of trials proposed before.

    A sampler with one stream restarts it in each process: a command that continues a study would sample its
    first values again, and two commands on one study would sample the same. Repeated trials are no new
    proposals: after an interruption the next trials are the same as without it.

    Args:
        make: Makes the sampler from the number of trials proposed before.
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
    ) -> Mapped:
        return self._of(study, trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._of(study, trial).sample_independent(study, trial, param_name, param_distribution)


def _proposed_before(study: optuna.Study, trial: FrozenTrial) -> int:
    """The number of trials proposed before this one, or before its first attempt."""
    number = trial.system_attrs.get(RETRIED, trial.number)
    return sum(
        other.number < number and RETRIED not in other.system_attrs and HANDED_BACK not in other.user_attrs
        for other in study.get_trials(deepcopy=False)
    )


def make_sampler(plan: Plan, arm: TunedArm) -> BaseSampler:
    """The plan's sampler for an arm's study; arms have different random streams."""
    tune = plan.tune

    def make(number: int) -> BaseSampler:
        seed = _seeds.derive(tune.seed, "tune", arm.label, number) % 2**32
        if tune.sampler == "grid":
            # All trials share one order of the points, so its seed does not depend on the trial.
            return GridSampler(arm.grid, seed=tune.seed)
        if tune.sampler == "random":
            return RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS, constant_liar=True)

    return Numbered(make)


def make_pruner(plan: Plan, arm: TunedArm) -> BasePruner:
    """The plan's pruner; a step is an epoch, counted over all seeds of a trial."""
    if plan.tune.pruner == "median":
        warmup = max(1, arm.cells[0].fit.epochs // 4)
        return MedianPruner(STARTUP_TRIALS, n_warmup_steps=warmup, n_min_trials=MEDIAN_TRIALS)
    if plan.tune.pruner == "hyperband":
        return HyperbandPruner(min_resource=max(1, arm.epochs // 9), max_resource=arm.epochs)
    return NopPruner()


def distributions(arm: TunedArm, grid: bool) -> dict[str, BaseDistribution]:
    """The distributions of an arm's trials."""
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
