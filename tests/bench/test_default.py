"""The default suite has the settings of a search with equal budgets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bpfree.bench.cell import run
from bpfree.bench.config import cells
from bpfree.bench.default import DIGITS, PHYSICAL
from bpfree.bench.files import read_yaml

ROOT = Path(__file__).parents[2]
SUMMARY = ROOT / "benchmarks/results/tuning_default/summary.json"


def test_learning_rates_are_the_winners_to_two_digits() -> None:
    summary = json.loads(SUMMARY.read_text())
    arms = {cell.arm: cell for cell in cells(DIGITS, seeds=1)}
    searched = {found["label"]: found for found in summary["arms"]}
    assert arms.keys() <= searched.keys()
    assert len({found["trials"] for found in summary["arms"]}) == 1
    for found in (searched[label] for label in arms):
        (won,) = found["best"]["params"].items()
        assert found["best"]["value"] == max(t["value"] for t in found["history"] if t["state"] == "complete")
        assert won[0] == "lr"
        assert arms[found["label"]].trainer.settings.lr == float(f"{won[1]:.1e}")
        assert summary["fit"][found["label"]] == arms[found["label"]].record()["fit"]
    assert not {cell.seed for cell in cells(DIGITS)} & set(summary["seeds"])


def test_mono_forward_and_its_baselines_have_the_winners_of_equal_searches() -> None:
    summary = json.loads((ROOT / "benchmarks/results/tuning_mono_forward_mnist/summary.json").read_text())
    arms = {c.arm: c for c in cells(read_yaml(ROOT / "configs/mono_forward_mnist_protocols.yaml"), seeds=1)}
    assert arms.keys() == {found["label"] for found in summary["arms"]}
    for found in summary["arms"]:
        cell, won = arms[found["label"]], found["best"]["params"]
        assert cell.record()["tuning"] == {"trials": 12, "seconds": found["seconds"]}
        assert {name: cell.trainer.record()[name] for name in won} == {
            k: float(f"{v:.3g}") for k, v in won.items()
        }
        assert found["best"]["value"] == max(t["value"] for t in found["history"] if t["state"] == "complete")
        assert not found["edge"]
        assert summary["fit"][found["label"]]["batch_size"] == cell.fit.batch_size
    assert len({cell.fit for cell in arms.values()}) == 1  # one stop rule
    assert not set(range(5)) & set(summary["seeds"])


@pytest.mark.parametrize(
    ("config", "search"),
    [(f"physical_{name}", f"physical_{name}") for name in
     ("vowels7_acoustic", "vowels12_acoustic", "vowels12_optical", "vowels12_microwave", "mnist_optical")]
    + [("strong/predsim_mnist_quarter", "predsim_mnist_quarter")],
)  # fmt: skip
def test_rates_are_the_winners_of_their_search(config: str, search: str) -> None:
    summary = json.loads((ROOT / f"benchmarks/results/tuning_{search}/summary.json").read_text())
    runs = cells(read_yaml(ROOT / f"configs/{config}.yaml"))
    arms = {cell.arm: cell for cell in runs}
    (trials,) = {found["trials"] for found in summary["arms"]}
    for found in summary["arms"]:
        cell, values = arms[found["label"]], [t["value"] for t in found["history"]]
        assert found["best"]["value"] == max(values) and len(values) == trials
        assert cell.trainer.settings.lr == found["best"]["params"]["lr"]
        assert cell.record()["tuning"] == {"trials": trials, "seconds": round(found["seconds"], 1)}
    assert arms.keys() == {*(found["label"] for found in summary["arms"]), *summary["not_searched"]}
    assert not {cell.seed for cell in runs} & set(summary["seeds"])


def test_every_arm_through_devices_gives_a_row(tmp_path: Path) -> None:
    for cell in cells(PHYSICAL, seeds=1):
        row = run(
            replace(cell, fit=replace(cell.fit, epochs=1, eval_every=1)), tmp_path, 20.0, lambda *_: None
        )
        assert row["status"] == "ok"
        assert (row["physics"]["passes"].get("train", 0) > 0) == (cell.physics.system != "none")
