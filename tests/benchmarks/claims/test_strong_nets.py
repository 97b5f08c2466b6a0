"""The claim on strong nets is read off rows that the bench makes, and made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.claims import strong_nets
from bpfree.bench.files import read_yaml
from bpfree.bench.results import Results

SMALL: dict[str, Any] = {
    "name": "small",
    "dataset": {"name": "digits", "train_size": 60},
    "net": {"name": "cnn", "channels": [4, 6]},
    "fit": {"epochs": 1, "batch_size": 20},
    "label": "predsim",
    "trainer": {"id": "local", "loss": "predsim", "loss_options": {"features": 16}, "output": "apart"},
    "controls": [{"trainer": {"id": "backprop"}}, {"trainer": {"id": "mono_forward"}}],
    "seeds": [0, 1],
}


def test_it_compares_by_seed_and_makes_no_row_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = strong_nets.measure(SMALL, tmp_path)
    rows = Results(tmp_path).read()
    assert len(rows) == 6
    told = {(row["arm"], row["seed"]): row["metrics"]["test_accuracy"] for row in rows}
    ahead = {
        rival: sum(told["predsim", seed] - told[rival, seed] for seed in (0, 1)) / 2
        for rival in ("backprop", "mono_forward")
    }
    for rival, value in ahead.items():
        assert found["predsim_ahead_by"][rival]["points"] == pytest.approx(100 * value)
    assert found["holds"] == (min(ahead.values()) >= 0)
    assert capsys.readouterr().out.count("±") == 3
    assert strong_nets.measure(SMALL, tmp_path) == found
    assert len(Results(tmp_path).read()) == 6


def test_its_own_configuration_gives_every_arm_the_same_net_data_and_passes() -> None:
    config = read_yaml(strong_nets.CONFIG)
    arms = [config["trainer"], *(control["trainer"] for control in config["controls"])]
    assert all(set(control) <= {"label", "trainer", "tuning"} for control in config["controls"])
    assert {"backprop", "backprop_ds", "mono_forward", "random_features"} < {arm["id"] for arm in arms}
    assert config["net"] == {"name": "vgg8b", "width": 0.25}
    assert (config["dataset"]["train_size"], len(config["seeds"])) == (10_000, 3)
    searched = read_yaml(Path(strong_nets.CONFIG).parents[1] / "tuning" / "predsim_mnist_quarter.yaml")
    assert searched["net"] == config["net"]
    tried = searched["tune"]["space"]["lr"]
    assert all(arm["lr"] in tried for arm in arms)
