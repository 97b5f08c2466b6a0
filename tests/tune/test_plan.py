"""A config narrows the declared space, never widens it, and a mistake in it is reported by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from bpfree import BadValue
from bpfree.trainers import TRAINERS, Choice, Range
from bpfree.tune.__main__ import main
from bpfree.tune.plan import make_plan
from tests.tune.common import config, plan


def test_by_default_all_declared_settings_are_searched() -> None:
    bare = config()
    del bare["tune"]
    made = make_plan(bare)
    assert [(arm.label, arm.position) for arm in made.arms] == [("mono_forward", 0), ("backprop", 1)]
    assert all(arm.space == TRAINERS[arm.label].space for arm in made.arms)
    assert [cell.seed for cell in made.arms[0].cells] == [100]


def test_arms_are_narrowed_together_and_alone() -> None:
    made = plan(
        only=["lr"],
        seeds=[7, 8],
        space={"lr": {"low": 1e-3}},
        arms={"backprop": {"lr": [1e-3, 1e-2]}},
    )
    ours, twin = made.arms
    assert ours.space == {"lr": Range(1e-3, 1e-1, log=True)}
    assert twin.space == {"lr": Choice((1e-3, 1e-2))}
    assert [cell.seed for cell in twin.cells] == [7, 8]


def test_a_grid_has_equal_steps_on_the_scale_and_both_ends() -> None:
    made = plan(only=["lr", "weight_decay"], space={"lr": {"low": 1e-4, "high": 1e-2, "points": 3}})
    lr = made.arms[0].grid["lr"]
    assert lr == pytest.approx((1e-4, 1e-3, 1e-2))
    assert (lr[0], lr[-1]) == (1e-4, 1e-2)
    assert made.arms[0].points == 3 * 5


def test_a_point_fills_the_cells_and_leaves_the_rest() -> None:
    arm = plan(seeds=[100, 101]).arms[1]
    found = arm.with_settings({"lr": 0.02})
    assert [(cell.trainer.settings.lr, cell.seed, cell.arm) for cell in found] == [
        (0.02, 100, "backprop"),
        (0.02, 101, "backprop"),
    ]
    assert {**found[0].trainer.record(), "lr": 0} == {**arm.cells[0].trainer.record(), "lr": 0}


BAD: list[tuple[dict[str, Any], list[str]]] = [
    ({"samplers": "tpe"}, ["tune.samplers", "did you mean 'sampler'"]),
    ({"sampler": "cmaes"}, ["tune.sampler", "cmaes", "grid"]),
    ({"pruner": "median2"}, ["tune.pruner", "median2", "hyperband"]),
    ({"seeds": []}, ["tune.seeds"]),
    ({"seeds": [-1]}, ["tune.seeds", "-1"]),
    ({"seeds": [1, 100]}, ["tune.seeds", "[1]", "reports"]),
    ({"seeds": [100, 100]}, ["seeds", "twice"]),
    ({"only": ["learning_rate"]}, ["tune.only", "learning_rate", "lr"]),
    ({"only": []}, ["tune.only"]),
    ({"space": {"momentum": [0.9]}}, ["tune.space", "momentum", "lr"]),
    ({"space": {"lr": {"low": 1e-9}}}, ["tune.space.lr.low", "1e-09", "0.0001 to 0.1"]),
    ({"space": {"lr": {"high": 3}}}, ["tune.space.lr.high", "3", "0.0001 to 0.1"]),
    ({"space": {"lr": {"low": 0.01, "high": 0.01}}}, ["tune.space.lr", "0.01", "less"]),
    ({"space": {"lr": {"lowest": 0.01}}}, ["tune.space.lr.lowest", "low"]),
    ({"space": {"lr": {"low": "small"}}}, ["tune.space.lr", "small"]),
    ({"space": {"lr": {"low": float("nan")}}}, ["tune.space.lr", "nan"]),
    ({"space": {"lr": {"points": 1}}}, ["tune.space.lr.points", "1"]),
    ({"space": {"lr": 0.01}}, ["tune.space.lr", "0.01", "low and high"]),
    ({"space": {"lr": [0.01, 0.01]}}, ["tune.space.lr", "distinct"]),
    ({"space": {"lr": []}}, ["tune.space.lr", "distinct"]),
    ({"space": {"lr": [0.01, True]}}, ["tune.space.lr", "True"]),
    ({"space": {"lr": [0.01, 7.0]}}, ["tune.space.lr", "7.0", "0.0001 to 0.1"]),
    ({"arms": {"backpropagation": {"lr": [0.01]}}}, ["tune.arms.backpropagation", "backprop"]),
    ({"arms": {"backprop": {"aux_weight": [1.0]}}}, ["tune.arms.backprop.aux_weight", "lr"]),
    ({"arms": {"backprop": {"lr": [9.0]}}}, ["tune.arms.backprop.lr", "9.0"]),
    ({"arms": {"backprop": [0.01]}}, ["tune.arms.backprop"]),
]


@pytest.mark.parametrize(("tune", "words"), BAD, ids=lambda v: str(v)[:50])
def test_a_bad_section_is_refused_by_name(tune: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(BadValue) as refused:
        plan(**tune)
    for word in words:
        assert word in str(refused.value)


def test_a_choice_is_narrowed_to_some_of_its_values() -> None:
    made = config(only=["momentum"], arms={"counter_current": {"momentum": [0.9, 0.0]}})
    made["controls"] = [{"trainer": {"id": "counter_current"}}]
    assert make_plan(made).arms[1].space["momentum"].values == (0.9, 0.0)  # type: ignore[union-attr]
    assert make_plan(made).arms[0].space == {}
    for given in ([0.7], {"low": 0.0}, [0]):
        made["tune"]["arms"]["counter_current"]["momentum"] = given
        with pytest.raises(BadValue, match=r"one of 0\.0, 0\.5, 0\.9"):
            make_plan(made)


def test_two_arms_of_one_name_are_refused() -> None:
    made = config()
    made["controls"].append({"trainer": {"id": "backprop", "momentum": 0.5}})
    with pytest.raises(BadValue, match="two arms have it"):
        make_plan(made)


@pytest.mark.parametrize(
    ("tune", "arguments", "words"),
    [
        ({"sampler": "best"}, ["--trials", "2"], ["tune.sampler", "best"]),
        ({}, [], ["--trials", "missing"]),
        ({"sampler": "grid"}, ["--trials", "4"], ["mono_forward: 5", "--trials 4"]),
        ({"arms": {"backprop": {"lr": [0.1]}}}, ["--sampler", "grid"], ["backprop: 1", "mono_forward: 5"]),
        ({}, ["--trials", "2", "--storage", "postgres+x://nowhere"], ["--storage postgres+x://nowhere"]),
        ({}, ["--trials", "2", "--storage", "study.db"], ["--storage study.db", "sqlite:///"]),
        ({}, ["--trials", "2", "--storage", "sqlite:////nowhere/at/all.db"], ["/nowhere/at/all.db"]),
        ({}, ["--trials", "2", "--set", "tune.space.lr.low=-1"], ["tune.space.lr.low", "-1"]),
    ],
    ids=str,
)
def test_the_command_line_reports_mistakes(
    tune: dict[str, Any],
    arguments: list[str],
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "config.yaml"
    YAML(typ="safe", pure=True).dump(config(**tune), path)
    assert main([str(path), "--out", str(tmp_path / "out"), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
    for word in words:
        assert word in captured.err
    assert not (tmp_path / "out" / "winner.yaml").exists()


def test_a_trial_is_made_on_every_device() -> None:
    experiment = {
        "name": "devices",
        "dataset": {"name": "digits"},
        "net": {"name": "physical", "hidden": [16]},
        "physics": {"system": "acoustic", "seeds": [3, 4]},
        "trainer": {"id": "physical"},
        "controls": [
            {"trainer": {"id": "physical_backprop"}},
            {"label": "none", "physics": {"system": "none", "seeds": [0]}, "trainer": {"id": "physical"}},
        ],
        "tune": {"seeds": [7, 8], "only": ["lr"]},
    }
    arms = make_plan(experiment).arms
    assert [arm.label for arm in arms] == ["physical", "physical_backprop", "none"]
    pairs = [[(cell.seed, cell.device_seed) for cell in arm.cells] for arm in arms]
    assert [sorted(found) for found in pairs[:2]] == [[(7, 3), (7, 4), (8, 3), (8, 4)]] * 2
    assert [sorted(found) for found in pairs[2:]] == [[(7, 0), (8, 0)]]


@pytest.mark.parametrize("arguments", [["--trials", "0"], ["--timeout", "-1"], ["--workers", "x"], []])
def test_bad_arguments_exit_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["none.yaml", *arguments] if arguments else [])
    assert exit_info.value.code == 2


def test_a_folder_that_cannot_be_used_is_a_clear_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    YAML(typ="safe", pure=True).dump(config(), path)
    assert main([str(path), "--trials", "1", "--out", str(path)]) == 2
    assert str(path) in capsys.readouterr().err
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "journal.log").write_text("not json\n")
    assert main([str(path), "--trials", "1", "--out", str(broken)]) == 2
    assert "not a journal" in capsys.readouterr().err
