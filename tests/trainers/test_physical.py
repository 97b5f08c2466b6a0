"""Physical local learning: model-free, counted, local, resumable; on simulated and on broken devices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import bpfree
from bpfree import BadValue, Physical
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


def make(system: Callable[[], Any] = cavity, **fixed: Any) -> Callable[..., Physical]:
    return lambda **settings: trainer_on(Device(system()), **{**fixed, **settings})


class Quantised:
    """A device of two bits: its derivative is 0 almost everywhere."""

    n_in, n_out, input_range = 20, 40, (0.0, 1.0)

    def __init__(self) -> None:
        self.matrix = np.random.default_rng(0).standard_normal((self.n_in, self.n_out))

    def forward(self, u: Any) -> Any:
        return np.clip(np.round(4 * (u @ self.matrix)) / 4, -0.5, 0.5).astype(u.dtype)


# ---- what is known of a device ---------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [True, False])
def test_training_needs_nothing_but_answers(skip: bool) -> None:
    assert_model_free(cavity, vectors(24), net={"skip": skip}, inner_steps=2)


def test_faults_of_a_system_are_seen() -> None:
    class Complex(Quantised):
        def forward(self, u: Any) -> Any:
            return super().forward(u) * 1j

    class Writing(Quantised):
        def forward(self, u: Any) -> Any:
            u -= 0.1
            return super().forward(u)

    class Reusing(Quantised):
        memory = np.zeros((2, 40))

        def forward(self, u: Any) -> Any:
            self.memory[:] = super().forward(u)
            return self.memory

    for system, why in (
        (Complex, "real channels"),
        (Writing, "modified its input"),
        (Reusing, "a later call"),
    ):
        with pytest.raises(AssertionError, match=why):
            assert_model_free(system, vectors(24))


@pytest.mark.parametrize("normalize", ["none", "calibrated"])
def test_a_device_that_is_switched_off_ends_the_run(normalize: str) -> None:
    class Off(Quantised):
        def forward(self, u: Any) -> Any:
            return np.zeros((len(u), self.n_out))

    with pytest.raises(DeviceError, match=r"same output for \d+ rows \(all 0\)"):
        trainer_on(Device(Off()), normalize=normalize).fit(easy(160), epochs=1, batch_size=32)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_devices_can_be_driven_under_half_precision(precision: str) -> None:
    trainer = trainer_on(Device(cavity()), gradients="autograd", precision=precision)
    trainer.fit(vectors(24), epochs=1, batch_size=8)


def test_a_record_of_the_answers_trains_the_same_weights() -> None:
    assert_replays(cavity, vectors(24), inner_steps=2)


def test_rows_are_those_of_the_formulas_exactly() -> None:
    # 40 samples in batches of 16: the last one is short, and must not be filled up.
    assert_pass_counts(lambda: cavity(noise=0.0), vectors(40))


def test_a_device_without_a_derivative_can_be_trained_behind_and_backpropagation_is_told_nothing() -> None:
    data = easy(160)
    trainer = trainer_on(Device(Quantised()), skip=False, normalize="l2", lr=1e-2)
    trainer.fit(data, epochs=15, batch_size=32)
    assert trainer.evaluate(data)["accuracy"] > 0.9
    # The same device by autograd: rounding has the gradient 0, exactly.
    matrix = torch.from_numpy(Quantised().matrix).float()
    weight = torch.randn(20, 40, requires_grad=True)
    hidden = (data.x @ torch.randn(WIDTH, 40)) @ weight.T
    answer = (
        (4 * ((hidden.abs() / hidden.norm(dim=1, keepdim=True)) @ matrix)).round().div(4).clamp(-0.5, 0.5)
    )
    torch.autograd.backward(answer.square().sum() + 0 * weight.sum())
    assert torch.equal(weight.grad, torch.zeros_like(weight))  # type: ignore[arg-type]


# ---- the update ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("negatives", ["random", "all"])
@pytest.mark.parametrize("skip", [True, False])
def test_the_closed_form_is_the_local_gradient_in_every_layer(negatives: Any, skip: bool) -> None:
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
        block.optimizer = Kept(block.body.parameters())  # type: ignore[assignment]
        block.rule, block.steps = ClosedFormGradient(), 1
        block.update(features, target)
        found = block.optimizer.gradients  # type: ignore[attr-defined]
        for ours, theirs in zip(found, expected, strict=True):
            assert (ours - theirs).abs().max() < 1e-10
        rows = output.detach()


class Kept(torch.optim.SGD):
    """An optimizer that keeps the gradients and moves nothing."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1)
        self.gradients: list[Tensor] = []

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.gradients = [p.grad.clone() for g in self.param_groups for p in g["params"]]


def test_a_run_by_the_closed_form_follows_one_by_autograd() -> None:
    data = vectors(32)
    runs = [
        make(lambda: cavity(0.0))(gradients=gradients, optimizer="sgd", lr=0.1)
        for gradients in ("analytic", "autograd")
    ]
    histories = [trainer.fit(data, epochs=2, batch_size=16) for trainer in runs]
    for ours, theirs in zip(*(h.rows for h in histories), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


def test_inner_steps_are_steps_on_the_recorded_answer_by_hand() -> None:
    data = vectors(16)
    trainer = make(lambda: cavity(0.0), layers=1)(inner_steps=3, optimizer="sgd", lr=0.1, momentum=0.0)
    trainer.build(data.sample_shape, CLASSES)
    block = trainer.cascade.units[0]
    weight, bias = (p.detach().clone().requires_grad_() for p in block.body.parameters())
    loss, y = block.loss, data.y
    assert isinstance(loss, PairCosine)
    generator = bpfree._seeds.generator(y.device, 0, "negatives", 0, 0)  # type: ignore[attr-defined]
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


def test_layers_are_local_and_no_layer_hears_of_the_one_above() -> None:
    data = vectors(16)
    assert_local(make()(), data.x, data.y)
    assert_locality(make()(), data.x, data.y)
    assert_locality(make()(gradients="autograd"), data.x, data.y)
    assert make_built().locality == "L3"
    plain, disturbed = make_built(), make_built()
    with torch.no_grad():
        disturbed.cascade.units[1].body.weight.add_(1.0)
    for trainer in (plain, disturbed):
        trainer.step(data.x, data.y)
    assert_same_bits(disturbed.cascade.units[0], plain.cascade.units[0])


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
def test_a_resumed_run_ends_as_one_that_never_stopped_passes_included(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    # The device is noisy and drifts: every answer depends on all that were given before.
    def drifting() -> AcousticCavity:
        return cavity(drift_time_s=500.0, seconds_per_pass=0.1)

    assert_resumes(
        make(drifting, inner_steps=2, normalize="calibrated", **settings), vectors(), tmp_path, vectors(20)
    )


def test_nothing_fails_quietly() -> None:
    assert_nothing_fails_quietly(make(inner_steps=1), vectors())


def test_answers_are_measured_again_when_they_are_too_old() -> None:
    data, epochs, age = vectors(40), 5, 2
    device = Device(cavity(0.0))
    trainer = trainer_on(device, cache=True, cache_age=age)
    history = trainer.fit(data, epochs=epochs, batch_size=16)
    sweeps = -(-epochs // age)
    assert device.passes["train"] == CLASSES * 40 * sweeps + 2 * 40 * epochs
    assert [row["passes"]["train"] for row in history.rows] == [
        CLASSES * 40 * (1 + e // age) + 2 * 40 * (e + 1) for e in range(epochs)
    ]


def test_kept_answers_are_those_of_the_drives_that_fresh_ones_answer() -> None:
    data = vectors(48)
    kept, fresh = (make(lambda: cavity(0.0))(cache=cache, inner_steps=1) for cache in (True, False))
    histories = [trainer.fit(data, epochs=2, batch_size=16) for trainer in (kept, fresh)]
    for ours, theirs in zip(*(h.rows for h in histories), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


class Failing(AcousticCavity):
    """Fails at random in a share of its calls."""

    def __init__(self, share: float) -> None:
        super().__init__(noise=0.0)
        self.share, self.rng = share, np.random.default_rng(0)

    def forward(self, u: Any) -> Any:
        if self.rng.random() < self.share:
            raise DeviceError("no answer")
        return super().forward(u)


class Breaking(AcousticCavity):
    """Answers so many calls and no more."""

    def __init__(self, calls: int) -> None:
        super().__init__(noise=0.0)
        self.left = calls

    def forward(self, u: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise DeviceError("no answer", retryable=False)
        return super().forward(u)


def test_a_device_that_fails_now_and_then_costs_nothing() -> None:
    data = easy(64)
    device = Device(Failing(0.01))
    failing = trainer_on(device, inner_steps=2)
    steady = trainer_on(Device(cavity(0.0)), inner_steps=2)
    histories = [trainer.fit(data, data, epochs=20, batch_size=16) for trainer in (failing, steady)]
    assert device.retries_used > 0
    assert len(histories[0].rows) == 20
    assert_same_bits(failing.cascade, steady.cascade)


def test_a_device_that_breaks_down_leaves_a_run_that_can_be_taken_up(tmp_path: Path) -> None:
    data, path = easy(64), tmp_path / "state"
    whole = trainer_on(Device(cavity(0.0)), inner_steps=2)
    expected = whole.fit(data, epochs=6, batch_size=16)
    broken = trainer_on(Device(Breaking(30)), inner_steps=2)
    with pytest.raises(DeviceError, match="no answer"):
        broken.fit(data, epochs=6, batch_size=16, checkpoint=path)
    again = trainer_on(Device(cavity(0.0)), inner_steps=2)
    history = again.fit(data, epochs=6, batch_size=16, checkpoint=path)
    # 30 calls are three epochs of four steps on two layers, and half of the fourth.
    assert history.resumed == 1
    assert history.rows == expected.rows
    assert_same_bits(again.cascade, whole.cascade)


# ---- settings --------------------------------------------------------------------------------------------


def test_the_amplitude_of_labels_is_that_of_the_training_data_and_is_saved(tmp_path: Path) -> None:
    data = TensorData(vectors().x * 3 - 5, vectors().y, CLASSES)
    trainer = make()()
    trainer.fit(data, epochs=1, batch_size=16)
    assert trainer.slots.amplitude.item() == data.x.abs().max().item()
    trainer.save(tmp_path / "model")
    other = make()()
    other.load(tmp_path / "model", (WIDTH,))
    assert other.slots.amplitude.item() == trainer.slots.amplitude.item()
    fixed = make()(label_amplitude=2.5)
    fixed.fit(data, epochs=1, batch_size=16)
    assert fixed.slots.amplitude.item() == 2.5


def test_the_one_pass_readout_asks_once_for_each_layer() -> None:
    data, device = vectors(40), Device(cavity(0.0))
    trainer = trainer_on(device, readout="one_pass", inner_steps=1)
    trainer.fit(data, epochs=2, batch_size=16)
    assert device.passes["train"] == (2 + 1) * 2 * 40 * 2
    trainer.evaluate(data)
    assert device.passes["eval"] == 2 * 40
    assert list(trainer.cascade.readouts) == ["one_pass"]


def test_without_a_device_nothing_is_sent_and_the_rows_themselves_are_learned_on() -> None:
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
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(BadValue, match=name):
        trainer = make()(**settings)
        trainer.build((WIDTH,), CLASSES)


def test_another_network_is_refused() -> None:
    with pytest.raises(BadValue, match="physical_net"):
        Physical(bpfree.nn.mlp([4, 4, 3]), progress=False).build((4,), 3)


def test_building_sends_nothing() -> None:
    device = Device(cavity())
    trainer_on(device).build((WIDTH,), CLASSES)
    assert sum(device.passes.values()) == 0
    assert snapshot(physical_net([device], (WIDTH,), CLASSES, []))["1.scale"].shape == (20,)
