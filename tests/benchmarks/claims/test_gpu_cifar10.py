"""The claim on a GPU, read off rows that a CPU can make."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest

from benchmarks.claims import gpu_cifar10 as claim
from bpfree.bench.config import cells
from bpfree.bench.results import Results
from bpfree.bench.targets import TargetCost

SMALL: dict[str, Any] = {
    "name": "small",
    "dataset": {"name": "digits", "train_size": 600},
    "net": {"name": "cnn", "channels": [4, 6]},
    "fit": {"epochs": 6, "batch_size": 20},
    "label": "predsim",
    "trainer": {"id": "local", "loss": "predsim", "output": "apart", "lr": 0.01},
    "controls": [{"trainer": {"id": "backprop", "lr": 0.01}}],
    "seeds": [0, 1],
}


def test_accuracy_and_the_way_to_it_are_those_of_the_rows(tmp_path: Path) -> None:
    found = claim.measure(SMALL, tmp_path, targets=(0.2, 1.01))
    rows = [row for row in Results(tmp_path).read() if row["arm"] == "predsim"]
    assert found["test_accuracy"]["predsim"] == {row["seed"]: row["metrics"]["test_accuracy"] for row in rows}
    assert not found["holds"]
    near, never = found["to_target"]["predsim"]
    assert (near["hits"], never["hits"]) == (2, 0)
    assert 0 < near["train_s"] < max(row["curve"][-1][2] for row in rows)
    assert near["energy_j"] is None and never["train_s"] is None
    assert "energy not measured" in found["figure"] and "reached 101% in 0 of 2 runs" in found["figure"]


def test_the_limit_is_that_of_the_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = claim.measure(SMALL, tmp_path)
    mean = statistics.mean(first["test_accuracy"]["predsim"].values())
    for limit in (mean, mean + 1e-6):
        monkeypatch.setattr(claim, "LIMIT", limit)
        assert claim.measure(SMALL, tmp_path)["holds"] == (limit == mean)


def test_joules_are_told_where_they_were_metered() -> None:
    cost = TargetCost(
        target=0.9, hits=3, n=3, train_s=61.2, train_cpu_s=None, train_flops=None, energy_j=12_340.0
    )
    assert claim.describe_cost("predsim", cost) == "predsim to 90%: 61.2 s, 12.3 kJ"


def test_the_experiment_is_the_recipe_and_its_twin_with_a_meter() -> None:
    found = cells(claim.experiment())
    assert [(cell.arm, cell.seed) for cell in found[:2]] == [("predsim", 0), ("backprop", 0)] and len(
        found
    ) == 6
    assert all(cell.energy is not None and cell.device == "cuda" for cell in found)
    assert {cell.fit["eval_every"] for cell in found} == {10}
