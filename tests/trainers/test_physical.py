"""Physical local learning, on simulated devices and on devices that fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import bpfree
from bpfree import BadValue, Physical, _seeds
from bpfree.core.update_rules import ClosedFormGradient
from bpfree.data import TensorData
from bpfree.losses import PairCosine
from bpfree.nn import physical_net
from bpfree.physics import AcousticCavity, Device, DeviceError
from bpfree.testing import (
    assert_local,
    assert_locality,
    assert_model_free,
    assert_nothing_fails_quietly,
    assert_pass_counts,
    assert_replays,
    assert_resumes,
    assert_same_bits,
    assert_same_seed_same_run,
)
from tests.helpers import CLASSES, easy, snapshot, vectors

WIDTH = 12


def cavity(noise: float = 0.05, **options: Any) -> AcousticCavity:
    return AcousticCavity(noise=noise, **options)


def trainer_on(
    device: Any, *, layers: int = 2, skip: bool = True, normalize: Any = "none", **settings: Any
) -> Physical:
    torch.manual_seed(0)
    net = physical_net([device] * layers, (WIDTH,), CLASSES, [15] * (layers - 1), "l2", skip, normalize)
    return Physical(net, progress=False, **settings)


def make(system: Callable[[], Any] = cavity, **defaults: Any) -> Callable[..., Physical]:
    return lambda **settings: trainer_on(Device(system()), **{**defaults, **settings})


class Quantized:
    """A device with quantized outputs, whose derivative is 0 almost everywhere."""

    n_in, n_out, input_range = 20, 40, (0.0, 1.0)

    def __init__(self) -> None:
        self.matrix = np.random.default_rng(0).standard_normal((self.n_in, self.n_out))

    def forward(self, u: Any) -> Any:
        return np.clip(np.round(4 * (u @ self.matrix)) / 4, -0.5, 0.5).astype(u.dtype)


# ---- training without a model of the device -------------------------------------------------------------


@pytest.mark.parametrize("skip", [True, False])
def test_training_needs_only_outputs_of_the_device(skip: bool) -> None:
    assert_model_free(cavity, vectors(24), net={"skip": skip}, inner_steps=2)


def test_faults_of_a_system_are_detected() -> None:
    class Complex(Quantized):
        def forward(self, u: Any) -> Any:
            return super().forward(u) * 1j

    class Writing(Quantized):
        def forward(self, u: Any) -> Any:
            u -= 0.1
            return super().forward(u)

    class Reusing(Quantized):
        memory = np.zeros((2, 40))

        def forward(self, u: Any) -> Any:
            self.memory[:] = super().forward(u)
            return self.memory

    for system, message in (
        (Complex, "real channels"),
        (Writing, "modified its input"),
        (Reusing, "a later call"),
    ):
        with pytest.raises(AssertionError, match=message):
            assert_model_free(system, vectors(24))


@pytest.mark.parametrize("normalize", ["none", "calibrated"])
def test_a_device_with_constant_outputs_ends_the_run(normalize: str) -> None:
    class Off(Quantized):
        def forward(self, u: Any) -> Any:
            return np.zeros((len(u), self.n_out))

    with pytest.raises(DeviceError, match=r"same output for \d+ rows \(all 0\)"):
        trainer_on(Device(Off()), normalize=normalize).fit(easy(160), epochs=1, batch_size=32)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_devices_can_be_used_in_bfloat16(precision: str) -> None:
    trainer = trainer_on(Device(cavity()), gradients="autograd", precision=precision)
    trainer.fit(vectors(24), epochs=1, batch_size=8)


def test_recorded_outputs_train_the_same_weights() -> None:
    assert_replays(cavity, vectors(24), inner_steps=2)


def test_the_number_of_passes_agrees_with_the_formulas() -> None:
    # 40 samples in batches of 16: the last one is short, and must not be padded.
    assert_pass_counts(lambda: cavity(noise=0.0), vectors(40))


def test_layers_behind_a_device_without_a_derivative_are_trained() -> None:
    data = easy(160)
    trainer = trainer_on(Device(Quantized()), skip=False, normalize="l2", lr=1e-2)
    trainer.fit(data, epochs=15, batch_size=32)
    assert trainer.evaluate(data)["accuracy"] > 0.9
    # With autograd through the same device all gradients are 0.
    matrix = torch.from_numpy(Quantized().matrix).float()
    weight = torch.randn(20, 40, requires_grad=True)
    hidden = (data.x @ torch.randn(WIDTH, 40)) @ weight.T
    output = (
        (4 * ((hidden.abs() / hidden.norm(dim=1, keepdim=True)) @ matrix)).round().div(4).clamp(-0.5, 0.5)
    )
    (gradient,) = torch.autograd.grad(output.square().sum() + 0 * weight.sum(), weight)
    assert torch.equal(gradient, torch.zeros_like(weight))


# ---- the update ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("negatives", ["random", "all"])
@pytest.mark.parametrize("skip", [True, False])
def test_the_closed_form_agrees_with_autograd_in_every_layer(negatives: Any, skip: bool) -> None:
    data = vectors(24)
    trainer = make(skip=skip)(negatives=negatives)
    trainer.build(data.sample_shape, CLASSES)
    trainer.cascade.double()
    y = data.y
    encoding = trainer.cascade.encoding
    rows, target = encoding.encode(data.x.double(), y, encoding.draw(y, torch.Generator().manual_seed(1)))
    for block in trainer.cascade.units:
        features = block.run_front(rows)
        (loss,), _, output = block.objective(features, target, None)
        expected = torch.autograd.grad(loss, list(block.body.parameters()))
        optimizer = block.optimizer = RecordingGradients(block.body.parameters())
        block.rule, block.steps = ClosedFormGradient(), 1
        block.update(features, target)
        for gradient, by_autograd in zip(optimizer.gradients, expected, strict=True):
            assert (gradient - by_autograd).abs().max() < 1e-10
        rows = output.detach()


class RecordingGradients(torch.optim.SGD):
    """An optimizer that stores the gradients and changes no parameter."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1)
        self.gradients: list[Tensor] = []

    def step(self, closure: Any = None) -> Any:
        self.gradients = [p.grad.clone() for g in self.param_groups for p in g["params"]]


def test_runs_with_the_closed_form_and_with_autograd_agree() -> None:
    data = vectors(32)
    runs = [
        make(lambda: cavity(0.0))(gradients=gradients, optimizer="sgd", lr=0.1)
        for gradients in ("analytic", "autograd")
    ]
    histories = [trainer.fit(data, epochs=2, batch_size=16) for trainer in runs]
    for ours, theirs in zip(*(h.rows for h in histories), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


def test_inner_steps_use_one_measured_output() -> None:
    data = vectors(16)
    trainer = make(lambda: cavity(0.0), layers=1)(inner_steps=3, optimizer="sgd", lr=0.1, momentum=0.0)
    trainer.build(data.sample_shape, CLASSES)
    block = trainer.cascade.units[0]
    weight, bias = (p.detach().clone().requires_grad_() for p in block.body.parameters())
    loss, y = block.loss, data.y
    assert isinstance(loss, PairCosine)
    generator = _seeds.generator(y.device, 0, "negatives", 0, 0)
    encoding = trainer.cascade.encoding
    rows, target = encoding.encode(data.x, y, encoding.draw(y, generator))
    features = block.run_front(rows)
    for _ in range(3):
        value = loss(features @ weight.T + bias, target)
        gradients = torch.autograd.grad(value, (weight, bias))
        with torch.no_grad():
            weight -= 0.1 * gradients[0]
            bias -= 0.1 * gradients[1]
    trainer.step(data.x, data.y)
    torch.testing.assert_close(block.body.weight, weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(block.body.bias, bias, rtol=1e-5, atol=1e-6)


def test_layers_are_local_and_do_not_depend_on_the_layer_above() -> None:
    data = vectors(16)
    assert_local(make()(), data.x, data.y)
    assert_locality(make()(), data.x, data.y)
    assert_locality(make()(gradients="autograd"), data.x, data.y)
    assert make_built().locality == "L3"
    unchanged, changed = make_built(), make_built()
    with torch.no_grad():
        changed.cascade.units[1].body.weight.add_(1.0)
    for trainer in (unchanged, changed):
        trainer.step(data.x, data.y)
    assert_same_bits(changed.cascade.units[0], unchanged.cascade.units[0])


def make_built() -> Physical:
    trainer = make(lambda: cavity(0.0))()
    trainer.build((WIDTH,), CLASSES)
    return trainer


# ---- runs ------------------------------------------------------------------------------------------------


def test_it_learns() -> None:
    data = easy(120)
    trainer = make()(lr=1e-2)
    history = trainer.fit(data, data, epochs=10, batch_size=32)
    assert trainer.evaluate(data)["accuracy"] > 0.95
    assert history.rows[-1]["loss"][0] < history.rows[0]["loss"][0]


def test_the_same_seed_gives_the_same_run() -> None:
    assert_same_seed_same_run(make(inner_steps=2), vectors(), vectors())


@pytest.mark.parametrize(
    "settings",
    [{}, {"cache": True, "cache_age": 2}, {"schedule": "greedy", "cache": True}, {"readout": "one_pass"}],
)
def test_a_resumed_run_equals_an_uninterrupted_one_including_passes(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    # The device has noise and drift: each output depends on all measurements before it.
    def drifting() -> AcousticCavity:
        return cavity(drift_time_s=500.0, seconds_per_pass=0.1)

    assert_resumes(
        make(drifting, inner_steps=2, normalize="calibrated", **settings), vectors(), tmp_path, vectors(20)
    )


def test_failures_raise_errors() -> None:
    assert_nothing_fails_quietly(make(inner_steps=1), vectors())


def test_cached_outputs_are_measured_again_after_cache_age() -> None:
    data, epochs, age = vectors(40), 5, 2
    device = Device(cavity(0.0))
    trainer = trainer_on(device, cache=True, cache_age=age)
    history = trainer.fit(data, epochs=epochs, batch_size=16)
    n_measurements = -(-epochs // age)
    assert device.passes["train"] == CLASSES * 40 * n_measurements + 2 * 40 * epochs
    assert [row["passes"]["train"] for row in history.rows] == [
        CLASSES * 40 * (1 + e // age) + 2 * 40 * (e + 1) for e in range(epochs)
    ]


def test_cached_and_new_outputs_give_the_same_run() -> None:
    data = vectors(48)
    cached, measured = (make(lambda: cavity(0.0))(cache=cache, inner_steps=1) for cache in (True, False))
    histories = [trainer.fit(data, epochs=2, batch_size=16) for trainer in (cached, measured)]
    for ours, theirs in zip(*(h.rows for h in histories), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


class Failing(AcousticCavity):
    """A device that fails in a random fraction of its calls."""

    def __init__(self, fraction: float) -> None:
        super().__init__(noise=0.0)
        self.fraction, self.rng = fraction, np.random.default_rng(0)

    def forward(self, u: Any) -> Any:
        if self.rng.random() < self.fraction:
            raise DeviceError("no answer")
        return super().forward(u)


class Breaking(AcousticCavity):
    """A device that fails after a number of calls."""

    def __init__(self, calls: int) -> None:
        super().__init__(noise=0.0)
        self.calls = calls

    def forward(self, u: Any) -> Any:
        self.calls -= 1
        if self.calls < 0:
            raise DeviceError("no answer", retryable=False)
        return super().forward(u)


def test_failed_calls_are_retried_and_change_no_bit() -> None:
    data = easy(64)
    device = Device(Failing(0.01))
    failing = trainer_on(device, inner_steps=2)
    reliable = trainer_on(Device(cavity(0.0)), inner_steps=2)
    histories = [trainer.fit(data, data, epochs=20, batch_size=16) for trainer in (failing, reliable)]
    assert device.retries_used > 0
    assert len(histories[0].rows) == 20
    assert_same_bits(failing.cascade, reliable.cascade)


def test_a_run_can_be_resumed_after_a_device_has_failed(tmp_path: Path) -> None:
    data, path = easy(64), tmp_path / "state"
    uninterrupted = trainer_on(Device(cavity(0.0)), inner_steps=2)
    expected = uninterrupted.fit(data, epochs=6, batch_size=16)
    broken = trainer_on(Device(Breaking(30)), inner_steps=2)
    with pytest.raises(DeviceError, match="no answer"):
        broken.fit(data, epochs=6, batch_size=16, checkpoint=path)
    resumed = trainer_on(Device(cavity(0.0)), inner_steps=2)
    history = resumed.fit(data, epochs=6, batch_size=16, checkpoint=path)
    # 30 calls are three epochs of four steps on two layers, and half of the fourth.
    assert history.resumed == 1
    assert history.rows == expected.rows
    assert_same_bits(resumed.cascade, uninterrupted.cascade)


# ---- settings --------------------------------------------------------------------------------------------


def test_the_amplitude_of_labels_is_set_by_the_training_data_and_saved(tmp_path: Path) -> None:
    data = TensorData(vectors().x * 3 - 5, vectors().y, CLASSES)
    trainer = make()()
    trainer.fit(data, epochs=1, batch_size=16)
    assert trainer.slots.amplitude.item() == data.x.abs().max().item()
    trainer.save(tmp_path / "model")
    other = make()()
    other.load(tmp_path / "model", (WIDTH,))
    assert other.slots.amplitude.item() == trainer.slots.amplitude.item()
    by_setting = make()(label_amplitude=2.5)
    by_setting.fit(data, epochs=1, batch_size=16)
    assert by_setting.slots.amplitude.item() == 2.5


def test_the_one_pass_readout_needs_one_pass_for_each_layer() -> None:
    data, device = vectors(40), Device(cavity(0.0))
    trainer = trainer_on(device, readout="one_pass", inner_steps=1)
    trainer.fit(data, epochs=2, batch_size=16)
    assert device.passes["train"] == (2 + 1) * 2 * 40 * 2
    trainer.evaluate(data)
    assert device.passes["eval"] == 2 * 40
    assert list(trainer.cascade.readouts) == ["one_pass"]


def test_without_a_device_the_layers_are_trained_on_the_rows() -> None:
    trainer = trainer_on(None, lr=1e-2)
    data = easy(120)
    history = trainer.fit(data, epochs=5, batch_size=32)
    assert trainer.passes == {} and "passes" not in history.rows[0]
    assert trainer.cascade.units[0].body.in_features == CLASSES + WIDTH
    assert trainer.evaluate(data)["accuracy"] > 0.9


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"cache_age": 3}, "cache_age"), ({"theta": 0.0}, "theta"), ({"precision": "bfloat16"}, "analytic")],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(BadValue, match=name):
        trainer = make()(**settings)
        trainer.build((WIDTH,), CLASSES)


def test_another_network_is_refused() -> None:
    with pytest.raises(BadValue, match="physical_net"):
        Physical(bpfree.nn.mlp([4, 4, 3]), progress=False).build((4,), 3)


def test_building_needs_no_pass() -> None:
    device = Device(cavity())
    trainer_on(device).build((WIDTH,), CLASSES)
    assert sum(device.passes.values()) == 0
    assert snapshot(physical_net([device], (WIDTH,), CLASSES, []))["1.scale"].shape == (20,)
