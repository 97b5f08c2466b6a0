"""CIFAR-10 on a GPU without a global backward pass: accuracy, and time and energy to a target.

python -m benchmarks.claims.gpu_cifar10

The rows are those of ``configs/strong/predsim_cifar10.yaml``, only predsim and the BP baseline, with the
energy of the GPU metered and the validation accuracy computed every tenth epoch. Missing rows are made.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import _record, claims
from bpfree.bench import runner
from bpfree.bench.arms import groups
from bpfree.bench.config import cells
from bpfree.bench.files import read_yaml
from bpfree.bench.results import Results
from bpfree.bench.targets import TargetCost, target_cost

TITLE = "On a GPU, a VGG learns CIFAR-10 without a global backward pass"
HOLDS_IF = (
    "VGG8b, predsim, 3 seeds: mean test accuracy at least 94 %; time and joules to 90 and 94 % validation "
    "accuracy stand beside those of its BP twin"
)
NAME = "gpu_cifar10"
CONFIG = Path(__file__).parents[2] / "configs" / "strong" / "predsim_cifar10.yaml"
LIMIT, TARGETS = 0.94, (0.90, 0.94)


def possible() -> str | None:
    """The reason why this machine cannot measure the claim: it has no GPU; or None."""
    return None if torch.cuda.is_available() else "needs a GPU"


def experiment() -> dict[str, Any]:
    """The published recipe and backpropagation, metered, with intermediate evaluations."""
    config = dict(read_yaml(CONFIG))
    config["name"] = NAME
    config["controls"] = [arm for arm in config["controls"] if arm["trainer"]["id"] == "backprop"]
    config["dataset"] = {**config["dataset"], "validation_size": 5000}
    config["fit"] = {**config["fit"], "eval_every": 10}
    config["energy"] = {"idle_s": 30}
    return config


def describe_cost(name: str, cost: TargetCost) -> str:
    """The cost of a target for an arm as text."""
    if cost.train_s is None:
        return f"{name} reached {cost.target:.0%} in {cost.hits} of {cost.n} runs"
    joules = "energy not measured" if cost.energy_j is None else f"{cost.energy_j / 1000:.3g} kJ"
    return f"{name} to {cost.target:.0%}: {cost.train_s:.3g} s, {joules}"


def measure(
    config: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    targets: tuple[float, ...] = TARGETS,
) -> dict[str, Any]:
    """Make the missing rows in ``folder``, and compute the accuracies and the costs of the targets.

    Args:
        config: The experiment; by default `experiment`.
        folder: Folder of the rows; by default in ``benchmarks/results``, only for the default experiment.
        targets: Validation accuracies.

    Raises:
        RuntimeError: If a cell has failed.
        ValueError: If another experiment is given without a folder.
    """
    if config is not None and folder is None:
        raise ValueError("config: another experiment needs its own folder for rows")
    rows = runner.run(cells(dict(config or experiment())), Results(folder or _record.RESULTS / NAME))
    if failed := [row for row in rows if row["status"] != "ok"]:
        raise RuntimeError(f"{failed[0]['arm']}, seed {failed[0]['seed']}: {failed[0]['reason']}")
    (group,) = groups(rows)
    accuracy = {arm.name: arm.by_seed("metrics", "test_accuracy") for arm in group.arms}
    costs = {arm.name: [target_cost(arm, target) for target in targets] for arm in group.arms}
    means = {name: statistics.mean(by_seed.values()) for name, by_seed in accuracy.items()}
    figure = [f"{name} {mean:.2%}" for name, mean in means.items()]
    figure += [describe_cost(name, cost) for name, each in costs.items() for cost in each]
    for line in figure:
        print(f"  {line}", flush=True)
    return {
        "holds": means["predsim"] >= LIMIT,
        "figure": "; ".join(figure),
        "test_accuracy": accuracy,
        "to_target": {name: [asdict(cost) for cost in each] for name, each in costs.items()},
    }


if __name__ == "__main__":
    sys.exit(claims.run(NAME))
