"""The checks of physical learning fail when the package breaks the rule that they check."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bpfree._errors import DeviceError
from bpfree.physics import AcousticCavity, Device
from bpfree.testing import assert_model_free, assert_pass_counts, assert_replays
from bpfree.trainers.physical import PhysicalTrainer
from tests.helpers import vectors


def cavity() -> AcousticCavity:
    return AcousticCavity(noise=0.05, seed_device=1, seed_noise=2)


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replaces `Device.measure` by a function of the device, the drive and the original method."""
    original = Device.measure

    def replace(other: Any) -> None:
        monkeypatch.setattr(Device, "measure", lambda self, u: other(self, u, original))

    return replace


def test_a_device_that_takes_tensors_with_a_gradient_is_seen(measure: Any) -> None:
    measure(lambda device, u, original: original(device, u.detach()))
    with pytest.raises(AssertionError, match="accepted a tensor that requires a gradient"):
        assert_model_free(cavity, vectors(12), epochs=1)


def test_a_trainer_that_uses_a_model_of_the_device_is_seen(measure: Any) -> None:
    def modeled(device: Device, u: Tensor, original: Any) -> Tensor:
        if hasattr(device.system, "digital_model"):
            device.system.digital_model()
        answer: Tensor = original(device, u)
        return answer

    measure(modeled)
    with pytest.raises(AssertionError, match="training used a model of the device"):
        assert_model_free(cavity, vectors(12), epochs=1)


def test_rows_that_are_sent_and_not_counted_are_seen(measure: Any) -> None:
    def twice(device: Device, u: Tensor, original: Any) -> Tensor:
        device.system.forward(u.numpy()[:1])
        answer: Tensor = original(device, u)
        return answer

    measure(twice)
    with pytest.raises(AssertionError, match=r"the system received \d+ rows, .* were counted"):
        assert_pass_counts(cavity, vectors(12), epochs=1, batch_size=8)


def test_rows_beyond_the_formula_are_seen_in_training_and_in_prediction(
    measure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = PhysicalTrainer.evaluate
    with monkeypatch.context() as patch:
        patch.setattr(
            PhysicalTrainer, "evaluate", lambda self, data: (evaluate(self, data), evaluate(self, data))
        )
        with pytest.raises(AssertionError, match=r"simultaneous, prediction: .* rows were counted; expected"):
            assert_pass_counts(cavity, vectors(12), epochs=1, batch_size=8)

    def counted_twice(device: Device, u: Tensor, original: Any) -> Tensor:
        original(device, u)
        answer: Tensor = original(device, u)
        return answer

    measure(counted_twice)
    with pytest.raises(AssertionError, match=r"simultaneous: .* rows were counted; expected"):
        assert_pass_counts(cavity, vectors(12), epochs=1, batch_size=8)


def test_prediction_that_sends_rows_uncounted_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = PhysicalTrainer.evaluate

    def hidden(self: PhysicalTrainer, data: Any) -> Any:
        for device in {
            front.physical_device for front in self.net.modules() if getattr(front, "physical_device", None)
        }:
            device.system.forward(torch.zeros(1, device.n_in).numpy())
        return evaluate(self, data)

    monkeypatch.setattr(PhysicalTrainer, "evaluate", hidden)
    with pytest.raises(AssertionError, match=r"simultaneous: prediction sent \d+ rows; expected \d+"):
        assert_pass_counts(cavity, vectors(12), epochs=1, batch_size=8)


def test_a_run_that_uses_more_than_the_answers_is_not_replayed(measure: Any) -> None:
    # The second run gets the recorded answers with other offsets, and drives its second layer with them.
    calls: list[int] = []

    def unrecorded(device: Device, u: Tensor, original: Any) -> Tensor:
        calls.append(len(u))
        answer: Tensor = original(device, u)
        return answer + 1e-3 * len(calls)

    measure(unrecorded)
    with pytest.raises(DeviceError, match="recorded with another drive"):
        assert_replays(cavity, vectors(12), epochs=1)
