"""Importances are given where they are known, and agree with the data."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from bpfree.tune.plots import draw, importance, no_importance
from bpfree.tune.study import ArmStudy
from tests.tune.common import arm_study, open_at, plan


def study(folder: Path, complete: int, constant: bool = False, **tune: object) -> ArmStudy:
    """Trials whose value follows from the learning rate alone, with some that were pruned."""
    found = arm_study(
        plan(**({"sampler": "random", "only": ["lr", "weight_decay"]} | tune)), open_at("journal", folder), 50
    )
    for number in range(complete + 4):
        trial = found.take()
        assert trial is not None
        if number % 4 == 0 and number < 16:
            trial.report(0.1, 1)
            found.study.tell(trial, state=TrialState.PRUNED)
        else:
            found.study.tell(trial, 0.5 if constant else trial.params["lr"])
    return found


def test_the_setting_that_matters_is_found_with_ten_trials(tmp_path: Path) -> None:
    found = study(tmp_path, 12)
    shares = importance(found)
    assert shares["lr"] > 0.75
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares == importance(found)
    # Optuna's default says of ten trials that both matter much alike.
    few = optuna.create_study(direction="maximize")
    few.add_trials([t for t in found.all() if t.state == TrialState.COMPLETE][:10])
    assert optuna.importance.get_param_importances(few)["lr"] < 0.75
    assert sorted(path.stem.split("_")[-1] for path in draw(found, tmp_path)) == [
        "history",
        "importance",
        "slice",
    ]


def test_an_unknown_importance_has_a_reason(tmp_path: Path) -> None:
    for folder, made, reason in (
        ("few", {"complete": 9}, "9 complete trials, at least 10 are needed"),
        ("constant", {"complete": 12, "constant": True}, "all complete trials have the same value"),
        ("one", {"complete": 12, "only": ["lr"]}, "fewer than two settings were searched"),
        (
            "fixed",
            {"complete": 12, "space": {"weight_decay": [1e-4]}},
            "fewer than two settings were searched",
        ),
    ):
        found = study(tmp_path / folder, **made)  # type: ignore[arg-type]
        assert (importance(found), no_importance(found)) == ({}, reason)


def test_trials_without_a_split_have_no_importance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = study(tmp_path, 12)

    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("Encountered zero total variance in all trees.")

    monkeypatch.setattr(optuna.importance, "get_param_importances", fail)
    assert importance(found) == {}
