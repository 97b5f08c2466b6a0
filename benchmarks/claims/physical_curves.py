"""Physical local learning and its baselines against model mismatch, noise, drift and passes, as curves.

python -m benchmarks.claims.physical_curves

Seven vowels by formants through the acoustic cavity, two layers, no skip; three seeds of model and device,
settings of configs/physical_vowels7_acoustic.yaml; trainers with a model of the device have the learning rate
of ideal backpropagation. Writes benchmarks/results/physical_curves.json and docs/physical_curves.png. Needs
the table of formants.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import bpfree
from benchmarks._record import record
from bpfree.bench.config import Cell, cells
from bpfree.bench.files import read_yaml
from bpfree.data import Splits, TensorData
from bpfree.nn import physical_net
from bpfree.physics import AcousticCavity, Device
from bpfree.trainers.physical import PhysicalTrainer

SEEDS = (0, 1, 2)
MISMATCHES = (0.0, 0.1, 0.3, 0.6)
NOISES = (0.0, 0.05, 0.1, 0.2)
DRIFTS = (0.0, 0.1, 0.3, 0.6)

#: The experiment with the settings of these arms, and their labels in it.
CONFIG = Path(__file__).parents[2] / "configs" / "physical_vowels7_acoustic.yaml"
LABELS = {
    "physical": "physical, no skip",
    "ideal backprop": "ideal backprop",
    "direct feedback": "direct feedback",
    "SPSA": "SPSA",
    "ridge": "ridge on the device",
}

#: Drift during training: size and number of moves of the device, epochs between two moves and after the last.
STEP, STEPS, EPOCHS_BETWEEN, EPOCHS_AFTER = 0.15, 10, 10, 200
#: Seeds, more as the effect is small, and arms: whether the device moves, and whether training continues.
RECOVERY_SEEDS = (0, 1, 2, 3, 4, 5)
RECOVERY = {"learns on": (True, True), "stays": (True, False), "never moved": (False, True)}
#: Number of last evaluations that are averaged: accuracy on 55 vowels varies by points between evaluations.
LAST = 10


@functools.cache
def arms() -> dict[str, Cell]:
    """The cell of the experiment for each trainer."""
    result = {cell.arm: cell for cell in cells(read_yaml(CONFIG))}
    return {name: result[label] for name, label in LABELS.items()}


def new_trainer(
    name: str, data: TensorData, seed: int, noise: float = 0.05, **settings: Any
) -> PhysicalTrainer:
    """A new trainer on a new device."""
    device = Device(AcousticCavity(seed_device=seed, seed_noise=seed, noise=noise))
    torch.manual_seed(seed)
    net = physical_net(
        [device] * 2, data.sample_shape, data.n_classes, [20], "minmax", skip=False, normalize="calibrated"
    )
    trainer = arms()[name].trainer.make(net, seed, torch.device("cpu"), **settings)
    assert isinstance(trainer, PhysicalTrainer)
    return trainer


def fit_settings(name: str) -> dict[str, Any]:
    """Epochs and batch size of a trainer."""
    fit = arms()[name].fit
    return {"epochs": fit.epochs, "batch_size": fit.batch_size}


def system(trainer: PhysicalTrainer) -> AcousticCavity:
    """The cavity of a trainer."""
    device = trainer.fronts[0].device
    assert isinstance(device, Device)
    assert isinstance(device.system, AcousticCavity)
    return device.system


def fitted(name: str, data: Splits, seed: int, **options: Any) -> PhysicalTrainer:
    """A trained trainer."""
    trainer = new_trainer(name, data.train, seed, **options)
    trainer.fit(data.train, **fit_settings(name))
    return trainer


def curve(values: Sequence[float], accuracy: Callable[[float, int], float]) -> list[dict[str, Any]]:
    """Test accuracies of all seeds at each value."""
    return [{"at": value, "accuracy": [accuracy(value, seed) for seed in SEEDS]} for value in values]


def against_mismatch(data: Splits) -> dict[str, Any]:
    """Trainers with a model of the device, against its mismatch."""
    result = {}
    for model in ("aware", "in_silico"):

        def accuracy(mismatch: float, seed: int, model: str = model) -> float:
            trainer = fitted("ideal backprop", data, seed, model=model, mismatch=mismatch)
            return float(trainer.evaluate(data.test)["accuracy"])

        result[model] = curve(MISMATCHES, accuracy)
    return result


def against_noise(data: Splits) -> dict[str, Any]:
    """Every trainer, against the noise of the device."""

    def accuracy(name: str) -> Callable[[float, int], float]:
        return lambda noise, seed: float(
            fitted(name, data, seed, noise=noise).evaluate(data.test)["accuracy"]
        )

    return {name: curve(NOISES, accuracy(name)) for name in LABELS}


def against_drift(data: Splits) -> dict[str, Any]:
    """Every trained trainer, against the drift of the device after training."""
    result: dict[str, Any] = {}
    for name in LABELS:
        rows: dict[float, list[float]] = {drift: [] for drift in DRIFTS}
        for seed in SEEDS:
            trainer = fitted(name, data, seed)
            still = system(trainer).state_dict()
            for drift in DRIFTS:
                system(trainer).load_state_dict(still)
                system(trainer).disturb(drift, seed=seed + 1)
                rows[drift].append(float(trainer.evaluate(data.test)["accuracy"]))
        result[name] = [{"at": drift, "accuracy": values} for drift, values in rows.items()]
    return result


def against_passes(data: Splits) -> dict[str, Any]:
    """Test accuracy during training, against rows sent to the device; it is not used for selection."""
    result = {}
    for name in LABELS:
        fit, runs = fit_settings(name), []
        for seed in SEEDS:
            trainer = new_trainer(name, data.train, seed)
            history = trainer.fit(
                data.train,
                data.test,
                **{**fit, "eval_every": max(1, fit["epochs"] // 10), "restore_best": False},
            )
            evaluated = [row for row in history.rows if "validation" in row]
            headline = trainer.cascade.headline
            runs.append([[row["passes"]["train"], row["validation"][headline]] for row in evaluated])
        result[name] = runs
    return result


def recovery(data: Splits) -> dict[str, Any]:
    """The device moves several times, then no more; weights are trained further or fixed.

    A control trains weights with a device that never moved.
    """
    result: dict[str, list[list[float]]] = {name: [] for name in RECOVERY}
    for seed in RECOVERY_SEEDS:
        for name, (moves, learns) in RECOVERY.items():
            trainer = fitted("physical", data, seed)
            accuracies = [float(trainer.evaluate(data.test)["accuracy"])]
            steps = [STEP * moves] * STEPS + [0.0] * (EPOCHS_AFTER // EPOCHS_BETWEEN)
            for number, step in enumerate(steps):
                system(trainer).disturb(step, seed=100 * seed + number)
                if learns:
                    trainer.fit(data.train, **{**fit_settings("physical"), "epochs": EPOCHS_BETWEEN})
                accuracies.append(float(trainer.evaluate(data.test)["accuracy"]))
            result[name].append(accuracies)
    return {"epochs_between": EPOCHS_BETWEEN, "moves": STEPS, "step": STEP, **result}


def mean(values: Sequence[float]) -> float:
    """The mean."""
    return sum(values) / len(values)


def draw(figures: dict[str, Any], path: Path) -> None:
    """All curves in one picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 5, figsize=(22, 4), sharey=True)
    panels = [("mismatch", "mismatch of the model"), ("noise", "noise / mean output"), ("drift", "drift eps")]
    for axis, (name, label) in zip(axes, panels, strict=False):
        for arm, rows in figures[name].items():
            axis.plot([r["at"] for r in rows], [100 * mean(r["accuracy"]) for r in rows], "o-", label=arm)
        axis.set_xlabel(label)
        axis.legend(fontsize=7)
    for arm, runs in figures["passes"].items():
        points = [[run[i] for run in runs] for i in range(len(runs[0]))]
        axes[3].plot(
            [p[0][0] for p in points], [100 * mean([v for _, v in p]) for p in points], "o-", label=arm
        )
    axes[3].set_xscale("log")
    axes[3].set_xlabel("rows sent in training")
    axes[3].legend(fontsize=7)
    for arm in RECOVERY:
        runs = figures["recovery"][arm]
        axes[4].plot([100 * mean([run[i] for run in runs]) for i in range(len(runs[0]))], "o-", label=arm)
    axes[4].axvline(STEPS, color="grey", ls=":")
    axes[4].set_xlabel(f"moves of the device by {STEP}, until the dotted line")
    axes[4].legend(fontsize=7)
    axes[0].set_ylabel("test accuracy, %")
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def main() -> int:
    """Make all curves; 0 if weights that are trained further recover, and fixed weights do not.

    Recovered means an accuracy within one point of that with the device that never moved.
    """
    data = bpfree.data.load("vowel_formants", standardize=True)
    figures = {
        "mismatch": against_mismatch(data),
        "noise": against_noise(data),
        "drift": against_drift(data),
        "passes": against_passes(data),
        "recovery": recovery(data),
    }
    draw(figures, Path(__file__).parents[2] / "docs" / "physical_curves.png")
    end = {name: mean([mean(run[-LAST:]) for run in figures["recovery"][name]]) for name in RECOVERY}
    before = mean([run[0] for run in figures["recovery"]["never moved"]])
    figures["summary"] = {"before, one reading": before} | {
        f"{name}, last {LAST} readings": value for name, value in end.items()
    }
    lost = {name: end["never moved"] - value for name, value in end.items()}
    return record("physical_curves", figures, lost["learns on"] <= 0.01 < lost["stays"])


if __name__ == "__main__":
    sys.exit(main())
