"""The adapter: counts by rows, retries, clips, calibrates, resumes, and is a wall to autograd."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from bpfree._errors import BadValue, DeviceError, Diverged
from bpfree.physics import AcousticCavity, Device, NonIdeal, PhysicalSystem, join_state, split_state
from tests.physics.systems import Doubler, drives


class Flaky(Doubler):
    """Fails on the calls whose numbers are given."""

    def __init__(self, *failing: int, retryable: bool = True) -> None:
        self.failing, self.retryable, self.called = failing, retryable, 0

    def forward(self, u: Any) -> Any:
        self.called += 1
        if self.called - 1 in self.failing:
            raise DeviceError("dropped frame", retryable=self.retryable)
        return super().forward(u)


class Answers(Doubler):
    """Answers what it is given, whatever it is asked."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def forward(self, u: Any) -> Any:
        return self.answer


def test_four_members_make_a_physical_system() -> None:
    assert isinstance(Doubler(), PhysicalSystem)
    u = drives(Doubler())
    np.testing.assert_array_equal(Device(Doubler()).forward(u), np.concatenate([2 * u, -u], axis=1))


def test_what_is_no_system_is_refused_by_name() -> None:
    class Half:
        n_in = 3
        input_range = (0.0, 1.0)

    with pytest.raises(BadValue, match=r"n_out, forward"):
        Device(Half())  # type: ignore[arg-type]
    for bad in ((1.0, 1.0), (0.0, float("inf"))):
        system = Doubler()
        system.input_range = bad
        with pytest.raises(BadValue, match="input_range"):
            Device(system)


def test_rows_are_counted_by_purpose_whatever_the_batches() -> None:
    u = drives(Doubler(), 50)
    for max_rows in (None, 1, 7, 50, 99):
        device = Device(Doubler(), max_rows=max_rows)
        with device.counters("train"):
            device.forward(u)
            with device.counters("eval"):
                device.forward(u[:3])
            device.forward(u[:0])
            device.forward(u[:10])
        device.forward(u[:1])
        assert device.passes == {"train": 60, "eval": 3, "calibration": 0, "other": 1}
    with pytest.raises(BadValue, match="training"), Device(Doubler()).counters("training"):
        pass


def test_pieces_give_the_answers_of_the_whole() -> None:
    u = drives(Doubler(), 50)
    np.testing.assert_array_equal(Device(Doubler(), max_rows=7).forward(u), Device(Doubler()).forward(u))


def test_retryable_failures_are_sent_again_and_only_answers_count() -> None:
    system = Flaky(1, 2, 5)
    device = Device(system, max_rows=4)
    u = drives(system, 16)
    with device.counters("train"):
        np.testing.assert_array_equal(device.forward(u), Doubler().forward(u))
    assert device.passes["train"] == 16 and device.calls == 4 and system.called == 7
    assert device.retries_used == 3 and device.retried_rows == 12


def test_failures_end_when_they_last_or_may_not_be_retried() -> None:
    lasting = Flaky(*range(99))
    with pytest.raises(DeviceError, match="dropped frame"):
        Device(lasting, retries=3).forward(drives(lasting))
    assert lasting.called == 4
    final = Flaky(0, retryable=False)
    with pytest.raises(DeviceError):
        Device(final, retries=3).forward(drives(final))
    assert final.called == 1


@pytest.mark.parametrize(
    "answer",
    [np.zeros((2, 6)), np.zeros((4, 5)), [[0.0] * 6] * 4, np.full((4, 6), np.nan), torch.zeros(4, 6)],
)
def test_an_answer_that_cannot_be_one_is_an_error(answer: Any) -> None:
    device = Device(Answers(answer), retries=1)
    with pytest.raises(DeviceError, match="answer"):
        device.forward(drives(Doubler(), 4))
    assert sum(device.passes.values()) == 0


def test_drives_are_clipped_and_the_violations_counted() -> None:
    device = Device(Doubler())
    u = np.array([[0.0, 2.0, -3.0], [1.0, -1.0, 0.5], [0.0, 0.0, 1.5]])
    y = device.forward(u)
    np.testing.assert_array_equal(y, Doubler().forward(np.clip(u, -1, 1)))
    assert device.clipped_values == 3 and device.clipped_rows == 2
    assert u[0, 1] == 2.0, "the caller's array is left alone"


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 2)), np.zeros(3), np.zeros((4, 3), int), np.zeros((4, 3), "f2")]
)
def test_a_drive_of_another_kind_is_refused(bad: Any) -> None:
    with pytest.raises(BadValue, match="float32 or float64"):
        Device(Doubler()).forward(bad)


def test_a_drive_with_nan_has_diverged() -> None:
    with pytest.raises(Diverged, match="1 values"):
        Device(Doubler()).forward(np.array([[0.0, np.nan, 0.0]]))


def test_the_wall_takes_numpy_and_no_graph() -> None:
    device = Device(Doubler())
    u = torch.rand(4, 3, requires_grad=True)
    with pytest.raises(BadValue, match="requires grad"):
        device.measure(u)
    with pytest.raises(BadValue, match="tensor"):
        device.forward(u.detach())  # type: ignore[arg-type]
    y = device.measure(u.detach())
    assert not y.requires_grad and y.grad_fn is None and y.dtype == torch.float32
    torch.testing.assert_close(y, torch.cat([2 * u, -u], 1).detach())


def test_calibration_finds_what_was_put_in() -> None:
    class Known(Doubler):
        """Outputs 0..2 have noise of sd 0.1, 3 is dead, 4 is noise alone, 5 has rare outliers."""

        rng = np.random.default_rng(0)

        def forward(self, u: Any) -> Any:
            y = super().forward(u)
            y[:, :3] += 0.1 * self.rng.standard_normal((len(u), 3)) + 5
            y[:, 3] = 2.0
            y[:, 4] = 0.01 * self.rng.standard_normal(len(u))
            y[:, 5] += 1000 * (self.rng.random(len(u)) < 0.01)
            return y

    device = Device(Known())
    report = device.calibrate(2000)
    # 2 u is uniform on [-2, 2]: 5th to 95th percentile are 3.6 apart.
    np.testing.assert_allclose(report.scale[:3], 3.6 / 3.2897, rtol=0.05)
    np.testing.assert_allclose(report.offset[:3], 5, atol=0.15)
    np.testing.assert_allclose(report.noise[:3], 0.1, rtol=0.2)
    assert report.scale[3] == 0 and report.noise[3] == 0
    np.testing.assert_allclose(report.scale[5], 1.8 / 3.2897, rtol=0.08)
    assert device.passes["calibration"] == report.rows == 2000 + 4 * 32
    standard = report.standardise(device.forward(drives(device, 100)))
    assert np.all(standard[:, 3] == 0) and np.all(np.abs(standard[:, :3]) < 2.5)


def test_the_nonlinearity_index_is_0_for_a_linear_device_and_absent_with_few_probes() -> None:
    device = Device(Doubler())
    assert device.calibrate(64).nonlinearity_index == pytest.approx(0, abs=1e-12)
    cavity = Device(AcousticCavity(noise=0))
    assert cavity.calibrate(30).nonlinearity_index is None
    index = cavity.calibrate(400).nonlinearity_index
    assert index is not None and 0.05 < index < 0.5
    with pytest.raises(BadValue, match="8"):
        device.calibrate(7)


def test_drift_is_seen_in_the_correlation() -> None:
    device = Device(AcousticCavity(noise=0, drift_time_s=10.0))
    with pytest.raises(BadValue, match="calibrate"):
        device.drift_report()
    device.calibrate(64)
    still = device.drift_report()
    assert still["correlation"] == pytest.approx(1) and still["rows"] == 8
    assert 0 <= float(still["age_s"] or 0) < 60
    seen = [1.0]
    for _ in range(3):
        device.advance(3.0)
        seen.append(float(device.drift_report()["correlation"] or 0))
    assert seen[-1] < 0.8 and seen[1] < 0.999
    assert device.passes["calibration"] == 64 + 4 * 8 + 4 * 8


def test_what_the_system_does_not_offer_is_said() -> None:
    device = Device(Doubler())
    with pytest.raises(BadValue, match="advance"):
        device.advance(1)
    with pytest.raises(BadValue, match="frozen"):
        device.frozen()


def test_state_goes_through_json_and_the_run_goes_on_with_the_same_bits() -> None:
    def make() -> Device:
        inner = AcousticCavity(seed_noise=3, drift_time_s=50.0, seconds_per_pass=0.1)
        return Device(NonIdeal(inner, input_noise=0.01, gain_drift=0.1, drift_time_s=9.0, seed=5))

    first = make()
    u = drives(first)
    first.calibrate(64)
    with first.counters("train"):
        first.forward(u + 0.5)
    arrays, rest = split_state(first.state_dict())
    second = make()
    second.load_state_dict(join_state(arrays, json.loads(json.dumps(rest))))
    assert second.report() == first.report()
    assert second.calibration is not None and first.calibration is not None
    np.testing.assert_array_equal(second.calibration.reference_answer, first.calibration.reference_answer)
    for device in (first, second):
        device.advance(4.0)
    np.testing.assert_array_equal(first.forward(u), second.forward(u))
    assert not np.array_equal(make().forward(u), first.forward(u))


def test_the_report_says_what_the_device_is_and_close_reaches_it() -> None:
    class Closing(Doubler):
        energy_j = 2.5
        closed = False

        def report(self) -> dict[str, Any]:
            return {"lamp_hours": 3}

        def close(self) -> None:
            self.closed = True

    system = Closing()
    with Device(system) as device:
        report = device.report()
        assert report["kind"] == "device" and report["energy_j"] == 2.5 and report["lamp_hours"] == 3
        assert "energy_j" not in Device(Doubler()).report()
    assert system.closed


def test_clipped_rows_are_rows_that_hold_a_clipped_value() -> None:
    device = Device(Doubler())
    u = np.zeros((4, 3))
    u[0] = 5.0
    u[2, 1] = -7.0
    device.forward(u)
    assert (device.clipped_values, device.clipped_rows) == (4, 2)


def test_the_pause_doubles_from_one_retry_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("bpfree.physics.device.time.sleep", pauses.append)
    Device(Flaky(0, 1, 2), pause_s=0.5).forward(drives(Doubler()))
    assert pauses == [0.5, 1.0, 2.0]
