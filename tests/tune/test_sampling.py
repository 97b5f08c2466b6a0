"""The sample of a trial depends on its number, so no other process samples it again."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from bpfree.tune.sampling import make_pruner
from tests.tune.common import arm_study, open_at, plan, with_epochs


def draws(kind: str, folder: Path, trials: int, restart_every: int, sampler: str = "random") -> list[float]:
    """The values of a study's trials, its process begun anew after every ``restart_every`` trials."""
    made, found = plan(sampler=sampler), []
    for number in range(trials):
        if number % restart_every == 0:
            study = arm_study(made, open_at(kind, folder), trials)
        trial = study.take()
        assert trial is not None
        found.append(trial.params["lr"])
        study.study.tell(trial, 1.0 - abs(trial.params["lr"] - 0.01))
    return found


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_continued_study_samples_as_an_uninterrupted_one(sampler: str, tmp_path: Path) -> None:
    calm = draws("journal", tmp_path / "a", 9, 9, sampler)
    stopped = draws("journal", tmp_path / "b", 9, 2, sampler)
    assert stopped == calm
    assert len(set(calm)) == 9


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_trials_that_are_interrupted_change_none_of_the_others(sampler: str, tmp_path: Path) -> None:
    made = plan(sampler=sampler, only=["lr", "weight_decay"])

    def finished(folder: Path, interrupted: dict[int, int]) -> list[dict[str, float]]:
        """The settings of 9 trials, those at the given places given up so often."""
        folder.mkdir()
        found = []
        for place in range(9):
            study = arm_study(made, open_at("journal", folder), 9)
            for _ in range(interrupted.get(place, 0)):
                lost = study.take()
                assert lost is not None
                study.again(lost.number)
            trial = study.take()
            assert trial is not None
            found.append(trial.params)
            study.study.tell(trial, 1.0 - abs(trial.params["lr"] - 0.01))
        return found

    calm = finished(tmp_path / "calm", {})
    assert finished(tmp_path / "stopped", {0: 1, 3: 2, 7: 1}) == calm
    assert len({settings["lr"] for settings in calm}) == 9


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_trial_whose_worker_ended_while_sampling_is_sampled_again(sampler: str, tmp_path: Path) -> None:
    made = plan(sampler=sampler, only=["lr", "weight_decay"])
    calm = arm_study(made, open_at("journal", tmp_path / "calm"), 2)
    expected = [calm.take(), calm.take()]
    study = arm_study(made, open_at("journal", tmp_path / "stopped"), 2)
    half = study.study.ask({"lr": study.distributions["lr"]})
    study.again(half.number)
    found = [study.take(), study.take()]
    assert [t.params for t in found if t] == [t.params for t in expected if t]


def test_a_returned_trial_leaves_its_sample_to_the_next(tmp_path: Path) -> None:
    made = plan(sampler="random")
    calm = arm_study(made, open_at("journal", tmp_path / "calm"), 2)
    expected = [calm.take(), calm.take()]
    study = arm_study(made, open_at("journal", tmp_path / "full"), 1)
    first = study.take()
    study.open = lambda: 1  # type: ignore[method-assign] # as another saw it the moment before
    assert study.take() is None
    later = arm_study(made, open_at("journal", tmp_path / "full"), 2).take()
    assert [t.params for t in (first, later) if t] == [t.params for t in expected if t]


def test_arms_and_seeds_have_streams_of_their_own(tmp_path: Path) -> None:
    storage = open_at("journal", tmp_path)
    found = []
    for number, made in enumerate((plan(sampler="random"), plan(sampler="random", seed=1))):
        for arm in (0, 1):
            made.config["name"] = f"name {number}"
            trial = arm_study(made, storage, 1, arm).take()
            assert trial is not None
            found.append(trial.params["lr"])
    assert len(set(found)) == 4


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_a_grid_is_visited_point_by_point_and_once(kind: str, tmp_path: Path) -> None:
    made = plan(
        sampler="grid",
        only=["lr", "weight_decay"],
        space={"lr": [1e-3, 1e-2, 1e-1], "weight_decay": {"points": 2}},
    )
    workers = [arm_study(made, open_at(kind, tmp_path), 6) for _ in range(2)]
    seen = []
    for turn in range(6):
        trial = workers[turn % 2].take()
        assert trial is not None
        if turn == 2:  # its worker gives it up, and the other takes it
            workers[0].again(trial.number)
            trial = workers[1].take()
            assert trial is not None
        seen.append((trial.params["lr"], trial.params["weight_decay"]))
        workers[turn % 2].study.tell(trial.number, 0.5)
    assert sorted(seen) == sorted((lr, decay) for lr in (1e-3, 1e-2, 1e-1) for decay in (1e-6, 1e-2))
    assert all(worker.take() is None for worker in workers)


def test_the_median_prunes_after_its_warm_up_what_is_behind() -> None:
    made = with_epochs(plan(), 12)  # a quarter of which is spared
    arm = made.arms[0]
    study = optuna.create_study(direction="maximize", pruner=make_pruner(made, arm))
    for k in range(5):
        trial = study.ask()
        for step in range(1, 13):
            trial.report(0.5 + 0.1 * k, step)
        study.tell(trial, 0.5 + 0.1 * k)
    behind, ahead = study.ask(), study.ask()
    for step in range(1, 13):
        behind.report(0.69, step)  # the median of the five is 0.7
        ahead.report(0.71, step)
        assert behind.should_prune() == (step >= 3)
        assert not ahead.should_prune()


def test_a_median_of_fewer_than_four_prunes_nothing() -> None:
    made = with_epochs(plan(), 12)
    arm = made.arms[0]
    for long in (3, 4):
        study = optuna.create_study(direction="maximize", pruner=make_pruner(made, arm))
        for k in range(6):
            trial = study.ask()
            for step in range(1, 13 if k < long else 5):
                trial.report(0.5, step)
            study.tell(trial, 0.5)
        behind = study.ask()
        for step in range(1, 13):
            behind.report(0.4, step)
            if step > 4:
                assert behind.should_prune() == (long == 4)


def test_hyperband_prunes_the_worst(tmp_path: Path) -> None:
    made = with_epochs(plan(pruner="hyperband"), 27)
    study = arm_study(made, open_at("journal", tmp_path), 100)
    states = []
    for k in range(30):
        trial = study.take()
        assert trial is not None
        state = TrialState.COMPLETE
        for step in range(1, 28):
            trial.report(1.0 / (k + 1), step)
            if trial.should_prune():
                state = TrialState.PRUNED
                break
        study.study.tell(trial, 1.0 / (k + 1) if state == TrialState.COMPLETE else None, state)
        states.append(state)
    assert states[0] == TrialState.COMPLETE
    assert states.count(TrialState.PRUNED) > 10
