"""Learning with a device needs no model of it: tests with a learner that uses no trainer of bpfree.

The learner is a layer of physical local learning after Momeni et al. (Science 382, 1297, 2023): a matrix
behind the device, trained in closed form on pairs of a true and a false label, two layers, no skip.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bpfree._errors import DeviceError
from bpfree.physics import AcousticCavity, Device, ProcessSystem, Recorder, Replay
from bpfree.physics.system import Array
from tests.physics.systems import SIMULATED

CLASSES, WIDTH, THETA = 3, 12, 4.0


class Learner:
    """Two physical layers on one device; ``history`` holds the weights after every step."""

    def __init__(self, device: Device, inner_steps: int = 5) -> None:
        rng = np.random.default_rng(1)
        self.device, self.inner_steps = device, inner_steps
        self.into = [rng.standard_normal((device.n_in, n)) for n in (CLASSES + 4, WIDTH)]
        self.weights = [0.3 * rng.standard_normal((WIDTH, device.n_out)) for _ in range(2)]
        self.xi = [x / np.linalg.norm(x) for x in rng.standard_normal((2, WIDTH))]
        self.history: list[Array] = []

    def device_outputs(self, layer: int, h: Array) -> Array:
        low, high = self.device.input_range
        u = 0.5 + 0.3 * (h / np.linalg.norm(h, axis=1, keepdims=True)) @ self.into[layer].T
        return self.device.forward(low + (high - low) * np.clip(u, 0, 1))

    def goodness(self, layer: int, z: Array) -> tuple[Array, Array]:
        """Cosine of |z| with the reference, and its derivative by z."""
        xi, a = self.xi[layer], np.abs(z)
        m = np.sqrt(np.square(a).sum(1, keepdims=True) + 1e-12)
        g = (a @ xi)[:, None] / m
        return g[:, 0], np.sign(z) * (xi - g * a / m) / m

    def step(self, x: Array, y: Array, rng: np.random.Generator, lr: float = 0.5) -> None:
        wrong = (y + rng.integers(1, CLASSES, len(y))) % CLASSES
        pair = [np.concatenate([2.0 * np.eye(CLASSES)[label], x], axis=1) for label in (y, wrong)]
        for layer in range(2):
            with self.device.counters("train"):
                outputs = [self.device_outputs(layer, h) for h in pair]
            for _ in range(self.inner_steps):
                (g_pos, d_pos), (g_neg, d_neg) = (
                    self.goodness(layer, f @ self.weights[layer].T) for f in outputs
                )
                c = THETA / (1 + np.exp(THETA * (g_pos - g_neg)))
                gradient = (c[:, None] * d_pos).T @ outputs[0] - (c[:, None] * d_neg).T @ outputs[1]
                self.weights[layer] = self.weights[layer] + lr * gradient / len(y)
            pair = [f @ self.weights[layer].T for f in outputs]
        self.history += [w.copy() for w in self.weights]

    def predict(self, x: Array) -> Array:
        totals = []
        with self.device.counters("eval"):
            for label in range(CLASSES):
                h = np.concatenate([2.0 * np.tile(np.eye(CLASSES)[label], (len(x), 1)), x], axis=1)
                total = np.zeros(len(x))
                for layer in range(2):
                    h = self.device_outputs(layer, h) @ self.weights[layer].T
                    total += self.goodness(layer, h)[0]
                totals.append(total)
        return np.argmax(totals, axis=0)


def samples(n: int = 60) -> tuple[Array, Array]:
    """Three classes; one of the first three values is large."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, CLASSES, n)
    return 0.3 * rng.random((n, 4)) + np.eye(CLASSES, 4)[y], y


def train(system: Any, epochs: int = 4, **options: Any) -> Learner:
    learner = Learner(Device(system, **options))
    x, y = samples()
    rng = np.random.default_rng(2)
    for _ in range(epochs):
        for rows in np.split(np.arange(len(x)), 3):
            learner.step(x[rows], y[rows], rng)
    return learner


def assert_same_weights(a: Sequence[Array], b: Sequence[Array]) -> None:
    assert len(a) == len(b) > 0
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one, other)


class Signs(AcousticCavity):
    """Returns whether an amplitude is above that of a medium drive; the derivative is 0 almost everywhere."""

    def forward(self, u: Array) -> Array:
        return np.sign(super().forward(u) - super().forward(np.full((1, self.n_in), 0.5)))


def test_t3_learning_works_with_a_non_differentiable_device() -> None:
    learner = train(Signs(noise=0.0), epochs=20)
    x, y = samples()
    assert np.mean(learner.predict(x) == y) > 0.95
    u = learner.device.system.forward(np.full((1, 20), 0.3))
    shifted = learner.device.system.forward(np.full((1, 20), 0.3 + 1e-9))
    np.testing.assert_array_equal(u, shifted)


@pytest.mark.parametrize("make", SIMULATED.values(), ids=SIMULATED.keys())
def test_t4_training_on_a_record_gives_the_same_weights(make: Any, tmp_path: Path) -> None:
    recorder = Recorder(make(noise=0.1))
    first = train(recorder, epochs=2)
    recorder.save(tmp_path / "run.npz")
    replayed = train(Replay(tmp_path / "run.npz"), epochs=2)
    assert_same_weights(first.history, replayed.history)
    with pytest.raises(DeviceError, match=r"another drive|ends after"):
        Learner(Device(Replay(tmp_path / "run.npz")), inner_steps=5).predict(samples()[0])


def test_t7_training_through_a_pipe_gives_the_same_weights() -> None:
    code = "from bpfree.physics import AcousticCavity, serve; serve(AcousticCavity(noise=0.1))"
    with ProcessSystem([sys.executable, "-c", code]) as system:
        piped = train(system)
    assert_same_weights(train(AcousticCavity(noise=0.1)).history, piped.history)


@pytest.mark.parametrize("inner_steps", [1, 7])
@pytest.mark.parametrize("max_rows", [None, 9])
def test_t8_passes_match_the_formula_for_any_inner_steps_and_batches(
    inner_steps: int, max_rows: int | None
) -> None:
    learner = Learner(Device(AcousticCavity(), max_rows=max_rows), inner_steps)
    x, y = samples()
    rng = np.random.default_rng(0)
    epochs, layers = 3, 2
    for _ in range(epochs):
        for rows in np.split(np.arange(len(x)), [7, 31]):
            learner.step(x[rows], y[rows], rng)
    learner.predict(x[:11])
    expected = {"train": 2 * layers * len(x) * epochs, "eval": CLASSES * layers * 11}
    assert learner.device.passes == {**expected, "calibration": 0, "other": 0}


def test_retried_failures_do_not_change_the_weights() -> None:
    class Unreliable(AcousticCavity):
        rng = np.random.default_rng(0)
        failures = 0

        def forward(self, u: Array) -> Array:
            if self.rng.random() < 0.01:
                self.failures += 1
                raise DeviceError("dropped frame")
            return super().forward(u)

    system = Unreliable()
    unreliable, reliable = train(system, max_rows=2), train(AcousticCavity(), max_rows=2)
    assert system.failures > 2 and unreliable.device.retries_used == system.failures
    assert_same_weights(unreliable.history, reliable.history)
    assert unreliable.device.passes == reliable.device.passes


def test_learning_does_not_use_the_digital_model() -> None:
    class NoModel(AcousticCavity):
        def digital_model(self, mismatch: float = 0.0, seed: int = 0) -> Any:
            raise AssertionError("the digital model was requested")

    assert_same_weights(train(NoModel()).history, train(AcousticCavity()).history)


def test_the_learner_reaches_high_accuracy() -> None:
    x, y = samples()
    learner = train(AcousticCavity(), epochs=20)
    assert np.mean(learner.predict(x) == y) > 0.95
