"""The baselines of physical local learning: passes, gradients and estimates of gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from bpfree import (
    BadValue,
    PhysicalBackprop,
    PhysicalDirectFeedback,
    PhysicalRidge,
    PhysicalSPSA,
    RidgeAccumulator,
)
from bpfree.nn import physical_net
from bpfree.physics import AcousticCavity, Device, DeviceError
from bpfree.testing import assert_local, assert_locality, assert_same_seed_same_run
from bpfree.trainers.physical import PhysicalTrainer
from tests.helpers import CLASSES, easy, snapshot, vectors

N, EPOCHS = 40, 2


def made(
    kind: type[PhysicalTrainer], noise: float = 0.0, system: Any = None, **settings: Any
) -> PhysicalTrainer:
    torch.manual_seed(0)
    device = Device(system or AcousticCavity(noise=noise))
    net = physical_net([device] * 2, (12,), CLASSES, [15], "l2", True, "l2")
    return kind(net, progress=False, **settings)


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        (PhysicalBackprop, {}, 2 * N * EPOCHS),
        (PhysicalBackprop, {"model": "aware", "mismatch": 0.3}, 2 * N * EPOCHS),
        (PhysicalBackprop, {"model": "in_silico", "mismatch": 0.3}, 0),
        (PhysicalDirectFeedback, {}, 2 * N * EPOCHS),
        (PhysicalSPSA, {"directions": 3}, 2 * 3 * 2 * N * EPOCHS),
        (PhysicalRidge, {}, N),
    ],
)
def test_the_number_of_passes_is_that_of_the_formulas(
    kind: Any, settings: dict[str, Any], expected: int
) -> None:
    trainer = made(kind, **settings)
    trainer.fit(vectors(N), epochs=EPOCHS, batch_size=16)
    assert trainer.passes == {"train": expected, "eval": 0, "calibration": 0, "other": 0}
    trainer.evaluate(vectors(N))
    layers = 1 if kind is PhysicalRidge else 2
    assert trainer.passes["eval"] == layers * N


@pytest.mark.parametrize("kind", [PhysicalBackprop, PhysicalDirectFeedback, PhysicalRidge])
def test_they_learn(kind: Any) -> None:
    data = easy(120)
    trainer = made(kind, noise=0.02, lr=1e-2) if kind is not PhysicalRidge else made(kind)
    trainer.fit(data, data, epochs=20, batch_size=32)
    assert trainer.evaluate(data)["accuracy"] > 0.95


def test_backpropagation_with_an_exact_digital_model_agrees_with_autograd_through_the_system() -> None:
    data, system = vectors(16), AcousticCavity(noise=0.0)
    trainer = made(PhysicalBackprop, system=system, optimizer="sgd", lr=0.1, momentum=0.0)
    trainer.build(data.sample_shape, CLASSES)
    _, _, first, _, output = trainer.net.children()
    weights = [p.detach().clone().requires_grad_() for m in (first, output) for p in m.parameters()]
    core = system.digital_model(0.0)

    def layer(rows: torch.Tensor) -> torch.Tensor:
        drive = F.pad(rows.abs() / (rows.norm(dim=1, keepdim=True) + 1e-6), (0, 20 - rows.shape[1]))
        p = core(drive.double()).float()
        return torch.cat([p * 20**0.5 / p.norm(dim=1, keepdim=True), rows], 1)

    hidden = F.linear(layer(F.pad(data.x, (CLASSES, 0))), weights[0], weights[1])
    loss = F.cross_entropy(F.linear(layer(hidden), weights[2], weights[3]), data.y)
    gradients = torch.autograd.grad(loss, weights)
    trainer.step(data.x, data.y)
    trained = [p for m in (first, output) for p in m.parameters()]
    for p, weight, gradient in zip(trained, weights, gradients, strict=True):
        torch.testing.assert_close(p, weight - 0.1 * gradient, rtol=1e-4, atol=1e-6)


def test_ridge_is_ridge_regression_on_outputs_of_the_device() -> None:
    data = vectors(N)
    trainer = made(PhysicalRidge, lam=[1e-3])
    trainer.fit(data, epochs=1, batch_size=16)
    front = trainer.fronts[0]
    features = front(F.pad(data.x, (CLASSES, 0)))
    weight, bias = RidgeAccumulator(features.shape[1], CLASSES).add(features, data.y).solve(1e-3)
    linear = trainer.cascade.units[0].loss.linear
    torch.testing.assert_close(linear.weight, weight.T.float(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(linear.bias, bias.float(), rtol=1e-3, atol=1e-5)


def test_estimated_gradients_agree_on_average_with_the_true_ones() -> None:
    data = vectors(32)
    kinds: Any = {PhysicalSPSA: {"directions": 4000, "perturbation": 1e-3}, PhysicalBackprop: {}}
    updates = []
    for kind, settings in kinds.items():
        trainer = made(kind, optimizer="sgd", lr=1.0, momentum=0.0, **settings)
        trainer.build(data.sample_shape, CLASSES)
        output = list(trainer.net.children())[-1]
        before = output.bias.detach().clone()
        trainer.step(data.x, data.y)
        updates.append(output.bias.detach() - before)
    assert F.cosine_similarity(updates[0], updates[1], dim=0) > 0.95


def test_declared_levels_of_locality() -> None:
    data = vectors(16)
    for kind, level in ((PhysicalBackprop, "L0"), (PhysicalDirectFeedback, "L1"), (PhysicalRidge, "L3")):
        trainer = made(kind)
        trainer.build(data.sample_shape, CLASSES)
        assert trainer.locality == level
    assert_locality(made(PhysicalBackprop), data.x, data.y)
    assert_local(made(PhysicalDirectFeedback), data.x, data.y)


@pytest.mark.parametrize("kind", [PhysicalBackprop, PhysicalDirectFeedback, PhysicalSPSA])
def test_the_same_seed_gives_the_same_run(kind: Any) -> None:
    assert_same_seed_same_run(lambda **settings: made(kind, noise=0.05, **settings), vectors(), vectors())


class WithoutModel:
    n_in, n_out, input_range = 20, 20, (0.0, 1.0)

    def forward(self, u: Any) -> Any:
        return u * u


def test_backpropagation_through_a_device_without_a_digital_model_is_refused() -> None:
    with pytest.raises(BadValue, match="no digital model"):
        made(PhysicalBackprop, system=WithoutModel()).build((12,), CLASSES)
    with pytest.raises(BadValue, match="mismatch"):
        made(PhysicalBackprop, mismatch=0.5).build((12,), CLASSES)


def test_the_old_name_of_the_setting_mismatch_seed_is_accepted() -> None:
    with pytest.warns(FutureWarning, match=r"twin_seed is now physical_backprop\.mismatch_seed"):
        trainer = made(PhysicalBackprop, model="aware", twin_seed=3)
    assert isinstance(trainer, PhysicalBackprop)
    assert trainer.settings.mismatch_seed == 3


def test_weights_are_restored_if_a_device_fails_during_an_estimate() -> None:
    class Failing(AcousticCavity):
        calls = 5

        def forward(self, u: Any) -> Any:
            self.calls -= 1
            if self.calls < 0:
                raise DeviceError("switched off", retryable=False)
            return super().forward(u)

    trainer = made(PhysicalSPSA, system=Failing(noise=0.0), lr=1e-9)
    trainer.build((12,), CLASSES)
    before = snapshot(trainer.cascade)
    with pytest.raises(DeviceError, match="switched off"):
        trainer.fit(vectors(), epochs=4, batch_size=40)
    for name, tensor in trainer.cascade.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-6)
