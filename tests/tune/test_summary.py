"""The winner of a search."""

from __future__ import annotations

import itertools

import optuna
import pytest

from bpfree.tune.summary import _best
from tests.tune.common import plan

RATES = [1e-3, 1e-2, 1e-1]


@pytest.mark.parametrize("order", list(itertools.permutations(RATES)))
@pytest.mark.parametrize(
    ("values", "winner"), [((0.5, 0.7, 0.6), 1), ((0.7, 0.7, 0.7), 1), ((0.8, 0.7, 0.7), 0)]
)
def test_a_tie_goes_to_the_inside_of_the_space_whatever_came_first(
    order: tuple[float, ...], values: tuple[float, ...], winner: int
) -> None:
    (arm, *_) = plan(space={"lr": RATES}).arms
    distribution = {"lr": optuna.distributions.CategoricalDistribution(RATES)}
    trials = [
        optuna.trial.create_trial(
            params={"lr": rate}, distributions=distribution, value=values[RATES.index(rate)]
        )
        for rate in order
    ]
    study = optuna.create_study(direction="maximize")
    study.add_trials(trials)
    assert _best(arm, study.trials).params["lr"] == RATES[winner]


def test_of_equal_trials_inside_the_first_wins() -> None:
    rates = [1e-3, 1e-2, 2e-2, 1e-1]
    (arm, *_) = plan(space={"lr": rates}).arms
    distribution = {"lr": optuna.distributions.CategoricalDistribution(rates)}
    study = optuna.create_study(direction="maximize")
    for rate in (1e-1, 2e-2, 1e-2):
        study.add_trial(optuna.trial.create_trial(params={"lr": rate}, distributions=distribution, value=0.7))
    assert _best(arm, study.trials).params["lr"] == 2e-2
