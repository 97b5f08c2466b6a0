"""`Device`: counting, retries, clipping, calibration, resuming, and refusal of tensors with a graph."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import bpfree
from bpfree._errors import BadValue, DeviceError, Diverged
from bpfree.physics import (
    AcousticCavity,
    Device,
    NonIdeal,
    PhysicalSystem,
    Recorder,
    Replay,
    join_state,
    nonlinearity_index,
    split_state,
)
from bpfree.physics.system import find_digital_model
from tests.physics.systems import FAULTS, Doubler, drives


class Flaky(Doubler):
    """Fails in the calls with the given numbers."""

    def __init__(self, *failing: int, retryable: bool = True) -> None:
        self.failing, self.retryable, self.called = failing, retryable, 0

    def forward(self, u: Any) -> Any:
        self.called += 1
        if self.called - 1 in self.failing:
            raise DeviceError("dropped frame", retryable=self.retryable)
        return super().forward(u)


class Fixed(Doubler):
    """Returns a fixed value."""

    def __init__(self, output: Any) -> None:
        self.output = output

    def forward(self, u: Any) -> Any:
        return self.output


def test_four_members_make_a_physical_system() -> None:
    assert isinstance(Doubler(), PhysicalSystem)
    u = drives(Doubler())
    np.testing.assert_array_equal(Device(Doubler()).forward(u), np.concatenate([2 * u, -u], axis=1))


def test_incomplete_systems_are_refused_with_the_missing_members() -> None:
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


def test_passes_are_counted_by_purpose_for_any_batch_size() -> None:
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


def test_max_rows_does_not_change_outputs() -> None:
    u = drives(Doubler(), 50)
    np.testing.assert_array_equal(Device(Doubler(), max_rows=7).forward(u), Device(Doubler()).forward(u))


def test_retryable_failures_are_retried_and_only_successful_rows_counted() -> None:
    system = Flaky(1, 2, 5)
    device = Device(system, max_rows=4)
    u = drives(system, 16)
    with device.counters("train"):
        np.testing.assert_array_equal(device.forward(u), Doubler().forward(u))
    assert device.passes["train"] == 16 and device.calls == 4 and system.called == 7
    assert device.retries_used == 3 and device.retried_rows == 12


def test_lasting_and_non_retryable_failures_raise() -> None:
    lasting = Flaky(*range(99))
    with pytest.raises(DeviceError, match="dropped frame"):
        Device(lasting, retries=3).forward(drives(lasting, 1))
    assert lasting.called == 4
    final = Flaky(0, retryable=False)
    with pytest.raises(DeviceError):
        Device(final, retries=3).forward(drives(final))
    assert final.called == 1


@pytest.mark.parametrize(
    "output",
    [np.zeros((2, 6)), np.zeros((4, 5)), [[0.0] * 6] * 4, np.full((4, 6), np.nan), torch.zeros(4, 6)],
)
def test_invalid_outputs_raise(output: Any) -> None:
    device = Device(Fixed(output), retries=1)
    with pytest.raises(DeviceError, match=r"device returned|output of the device"):
        device.forward(drives(Doubler(), 4))
    assert sum(device.passes.values()) == 0


def test_drives_are_clipped_and_clipped_values_counted() -> None:
    device = Device(Doubler())
    u = np.array([[0.0, 2.0, -3.0], [1.0, -1.0, 0.5], [0.0, 0.0, 1.5]])
    y = device.forward(u)
    np.testing.assert_array_equal(y, Doubler().forward(np.clip(u, -1, 1)))
    assert device.clipped_values == 3 and device.clipped_rows == 2
    assert u[0, 1] == 2.0, "the array of the caller does not change"


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 2)), np.zeros(3), np.zeros((4, 3), int), np.zeros((4, 3), "f2")]
)
def test_drives_of_another_shape_or_dtype_are_refused(bad: Any) -> None:
    with pytest.raises(BadValue, match="float32 or float64"):
        Device(Doubler()).forward(bad)


def test_nan_in_a_drive_raises_diverged() -> None:
    with pytest.raises(Diverged, match="1 values"):
        Device(Doubler()).forward(np.array([[0.0, np.nan, 0.0]]))


def test_tensors_that_require_grad_are_refused() -> None:
    device = Device(Doubler())
    u = torch.rand(4, 3, requires_grad=True)
    with pytest.raises(BadValue, match="requires grad"):
        device.measure(u)
    with pytest.raises(BadValue, match="tensor"):
        device.forward(u.detach())  # type: ignore[arg-type]
    y = device.measure(u.detach())
    assert not y.requires_grad and y.grad_fn is None and y.dtype == torch.float32
    torch.testing.assert_close(y, torch.cat([2 * u, -u], 1).detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_drives_are_converted_to_float32(dtype: torch.dtype) -> None:
    u = torch.from_numpy(drives(Doubler(), 4)).to(dtype)
    expected = torch.cat([2 * u.float(), -u.float()], dim=1)
    assert torch.equal(Device(Doubler()).measure(u), expected)


def test_calibration_measures_known_offset_scale_and_noise() -> None:
    class Known(Doubler):
        """Outputs 0 to 2 have noise of sd 0.1, 3 is constant, 4 is noise only, 5 has rare outliers."""

        rng = np.random.default_rng(0)

        def forward(self, u: Any) -> Any:
            y = super().forward(u)
            y[:, :3] += 0.1 * self.rng.standard_normal((len(u), 3)) + 5
            y[:, 3] = 2.0
            y[:, 4] = 0.01 * self.rng.standard_normal(len(u))
            y[:, 5] += 1000 * (self.rng.random(len(u)) < 0.01)
            return y

    device = Device(Known())
    with pytest.warns(UserWarning, match=r"1 of 6 outputs \(3\) never changed"):
        report = device.calibrate(2000)
    # 2 u is uniform on [-2, 2]: 5th to 95th percentile are 3.6 apart.
    np.testing.assert_allclose(report.scale[:3], 3.6 / 3.2897, rtol=0.05)
    np.testing.assert_allclose(report.offset[:3], 5, atol=0.15)
    np.testing.assert_allclose(report.noise[:3], 0.1, rtol=0.2)
    assert report.scale[3] == 0 and report.noise[3] == 0
    np.testing.assert_allclose(report.scale[5], 1.8 / 3.2897, rtol=0.08)
    assert device.passes["calibration"] == report.rows == 2000 + 4 * 32
    standard = report.standardize(device.forward(drives(device, 100)))
    assert np.all(standard[:, 3] == 0) and np.all(np.abs(standard[:, :3]) < 2.5)


def test_nonlinearity_index_is_0_for_a_linear_device_and_none_with_few_probes() -> None:
    device = Device(Doubler())
    assert device.calibrate(64).nonlinearity_index == pytest.approx(0, abs=1e-12)
    cavity = Device(AcousticCavity(noise=0))
    assert cavity.calibrate(30).nonlinearity_index is None
    index = cavity.calibrate(400).nonlinearity_index
    assert index is not None and 0.05 < index < 0.5
    with pytest.raises(BadValue, match="8"):
        device.calibrate(7)


def test_drift_reduces_the_correlation() -> None:
    device = Device(AcousticCavity(noise=0, drift_time_s=10.0))
    with pytest.raises(BadValue, match="calibrate"):
        device.drift_report()
    device.calibrate(64)
    still = device.drift_report()
    assert still["correlation"] == pytest.approx(1) and still["rows"] == 8
    assert 0 <= float(still["age_s"] or 0) < 60
    correlations = [1.0]
    for _ in range(3):
        device.advance(3.0)
        correlations.append(float(device.drift_report()["correlation"] or 0))
    assert correlations[-1] < 0.8 and correlations[1] < 0.999
    assert device.passes["calibration"] == 64 + 4 * 8 + 4 * 8


def test_missing_optional_methods_raise() -> None:
    device = Device(Doubler())
    with pytest.raises(BadValue, match="advance"):
        device.advance(1)
    with pytest.raises(BadValue, match="frozen"):
        device.frozen()


def test_state_survives_json_and_resumes_bit_for_bit() -> None:
    def make() -> Device:
        inner = AcousticCavity(seed_noise=3, drift_time_s=50.0, seconds_per_pass=0.1)
        return Device(NonIdeal(inner, input_noise=0.01, gain_drift=0.1, drift_time_s=9.0, seed=5))

    first = make()
    u = drives(first)
    first.calibrate(64)
    with first.counters("train"):
        first.forward(u + 0.5)
    arrays, values = split_state(first.state_dict())
    second = make()
    second.load_state_dict(join_state(arrays, json.loads(json.dumps(values))))
    assert second.report() == first.report()
    assert second.calibration is not None and first.calibration is not None
    np.testing.assert_array_equal(second.calibration.reference_output, first.calibration.reference_output)
    for device in (first, second):
        device.advance(4.0)
    np.testing.assert_array_equal(first.forward(u), second.forward(u))
    assert not np.array_equal(make().forward(u), first.forward(u))


def test_report_includes_the_system_and_close_closes_it() -> None:
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


def test_clipped_rows_are_rows_with_a_clipped_value() -> None:
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


class Modified(Doubler):
    """Applies ``make`` to the correct output."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self.make = make

    def forward(self, u: Any) -> Any:
        return self.make(super().forward(u))


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
@pytest.mark.parametrize("around", [lambda s: s, NonIdeal, Recorder], ids=["bare", "nonideal", "recorder"])
def test_every_fault_in_an_output_raises(fault: Callable[[Any], Any], around: Callable[..., Any]) -> None:
    """In float32, as in training, and in float64; in `forward` and in `calibrate`."""
    options = {"scale": 1.0} if around is NonIdeal else {}
    device = Device(around(Modified(fault), **options), retries=1)
    for dtype in (np.float32, np.float64):
        with pytest.raises(DeviceError, match=r"device returned|in the output of the device|device raised"):
            device.forward(drives(device, 4).astype(dtype))
    with pytest.raises(DeviceError):
        device.calibrate(32)
    assert sum(device.passes.values()) == 0 and device.calibration is None


@pytest.mark.parametrize(
    "make",
    [
        lambda y: y[:, ::-1][:, ::-1],
        np.asfortranarray,
        np.ma.array,
        lambda y: y.view(np.matrix),
        lambda y: y.astype(">f8"),
        lambda y: y.astype(np.longdouble),
        lambda y: np.lib.stride_tricks.as_strided(y, writeable=False),
    ],
    ids=[
        "negative strides",
        "columns first",
        "nothing masked",
        "matrix",
        "big endian",
        "extended",
        "read-only",
    ],
)
def test_float_arrays_of_any_layout_and_type_are_accepted(make: Callable[[Any], Any]) -> None:
    u = drives(Doubler(), 5)
    expected = Doubler().forward(u)
    np.testing.assert_array_equal(Device(Modified(make)).forward(u), expected)
    measured = Device(Modified(make)).measure(torch.from_numpy(u).float())
    torch.testing.assert_close(measured, torch.from_numpy(expected).float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint16, np.int64, np.float16])
def test_outputs_of_other_real_dtypes_are_converted(dtype: Any) -> None:
    output = (np.arange(24).reshape(4, 6) % 5).astype(dtype)
    y = Device(Fixed(output)).forward(drives(Doubler(), 4))
    np.testing.assert_array_equal(y, output.astype(np.float64))


def test_a_system_may_reuse_its_output_buffer() -> None:
    class Buffered(Doubler):
        buffer = np.empty((50, 6))

        def forward(self, u: Any) -> Any:
            self.buffer[: len(u)] = super().forward(u)
            return self.buffer[: len(u)]

    u = drives(Doubler(), 50)
    for max_rows in (None, 20):
        device = Device(Buffered(), max_rows=max_rows)
        first, second = device.forward(u), device.forward(-u)
        np.testing.assert_array_equal(first, Doubler().forward(u))
        np.testing.assert_array_equal(second, Doubler().forward(-u))
    assert device.calibrate(64).nonlinearity_index == pytest.approx(0, abs=1e-12)


def test_a_system_may_overwrite_its_drive(tmp_path: Any) -> None:
    class Writing(Doubler):
        called = 0

        def forward(self, u: Any) -> Any:
            self.called += 1
            u *= 2
            if self.called == 1:
                raise DeviceError("dropped frame")
            return np.concatenate([u, -u / 2], axis=1)

    recorder = Recorder(Writing())
    u = drives(Doubler(), 5)
    tensor = torch.from_numpy(u.copy())
    y = Device(recorder).measure(tensor)
    np.testing.assert_array_equal(y.numpy(), Doubler().forward(u))
    np.testing.assert_array_equal(tensor.numpy(), u)
    recorder.save(tmp_path / "r.npz")
    np.testing.assert_array_equal(Device(Replay(tmp_path / "r.npz")).forward(u), Doubler().forward(u))


class Frail(Doubler):
    """Fails in calls with a row that begins with ``bad``, and at random for a share of the rows."""

    def __init__(self, share: float = 0.0, bad: float | None = None, returns_nan: bool = False) -> None:
        self.share, self.bad, self.returns_nan = share, bad, returns_nan
        self.rng, self.rows = np.random.default_rng(0), 0

    def forward(self, u: Any) -> Any:
        self.rows += len(u)
        y = super().forward(u)
        failed = (self.rng.random(len(u)) < self.share) | (u[:, 0] == self.bad)
        if self.returns_nan:
            y[failed] = np.nan
        elif failed.any():
            raise DeviceError("dropped frame")
        return y


@pytest.mark.parametrize("returns_nan", [False, True])
@pytest.mark.parametrize("share", [0.01, 0.05])
def test_rows_that_fail_at_random_are_retried(share: float, returns_nan: bool, tmp_path: Any) -> None:
    system = Frail(share, returns_nan=returns_nan)
    recorder = Recorder(system)
    device = Device(recorder)
    u = drives(system, 174)
    with device.counters("train"):
        for _ in range(20):
            np.testing.assert_array_equal(device.forward(u), Doubler().forward(u))
    assert device.passes["train"] == 20 * 174
    assert device.retried_rows == system.rows - 20 * 174 > 0
    # A call that was split is replayed as one call.
    recorder.save(tmp_path / "r.npz")
    replayed = Device(Replay(tmp_path / "r.npz"))
    for _ in range(20):
        np.testing.assert_array_equal(replayed.forward(u), Doubler().forward(u))


@pytest.mark.parametrize("max_rows", [None, 50])
@pytest.mark.parametrize(("returns_nan", "why"), [(False, "dropped frame"), (True, "6 values are NaN")])
def test_the_error_names_a_row_that_always_fails(max_rows: int | None, returns_nan: bool, why: str) -> None:
    u = drives(Doubler(), 174)
    system = Frail(0.01, bad=u[101, 0], returns_nan=returns_nan)
    device = Device(system, retries=4, max_rows=max_rows)
    with pytest.raises(DeviceError, match=rf"^row 101 of 174 failed in 5 attempts .*{why}"):
        device.forward(u)
    with pytest.raises(DeviceError, match=why):
        Device(Frail(bad=u[101, 0], returns_nan=returns_nan), retries=0).forward(u)


def test_exceptions_of_a_system_are_reported_and_programming_errors_not_retried() -> None:
    class Raising(Doubler):
        called = 0

        def __init__(self, error: Exception) -> None:
            self.error = error

        def forward(self, u: Any) -> Any:
            self.called += 1
            if self.called < 3:
                raise self.error
            return super().forward(u)

    u = drives(Doubler(), 2)
    timeout = Raising(TimeoutError("no reply from GPIB0::12"))
    np.testing.assert_array_equal(Device(timeout).forward(u), Doubler().forward(u))
    mistake = Raising(AttributeError("no channel B"))
    with pytest.raises(
        DeviceError, match=r"raised AttributeError: no channel B \(test_device\.py, line \d+\)"
    ):
        Device(mistake).forward(u)
    assert mistake.called == 1
    stop = Raising(KeyboardInterrupt())  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        Device(stop).forward(u)


def test_a_constant_device_is_refused() -> None:
    u = drives(Doubler(), 100)
    for make in (lambda y: 0 * y, lambda y: 0 * y + 3.5, lambda y: 0 * y + np.arange(6)):
        with pytest.raises(DeviceError, match="same output for"):
            Device(Modified(make)).calibrate(16)
        with pytest.raises(DeviceError, match="same output for"):
            Device(Modified(make)).forward(u)
        device = Device(Modified(make))
        with pytest.raises(DeviceError, match="same output for"):
            for row in u:
                device.forward(row[None])
    first_row = Device(Modified(lambda y: y[:1] + 0 * y), max_rows=10)
    with pytest.raises(DeviceError, match="same output for 10 rows"):
        for part in np.split(u, 5):
            first_row.forward(part)
    one = np.zeros((100, 3))
    np.testing.assert_array_equal(Device(Doubler()).forward(one), Doubler().forward(one))
    with pytest.raises(BadValue, match="all the same"):
        Device(Doubler()).calibrate(drives=one)


def clip(y: Any, column: int, top: float) -> Any:
    y[:, column] = np.minimum(y[:, column], top)
    return y


def wrapped(y: Any, dtype: Any, gain: float) -> Any:
    return (gain * y).astype(np.int64).astype(dtype)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda y: y * [1, 1, 0, 1, 0, 1], r"2 of 6 outputs \(2, 4\) never changed"),
        (lambda y: clip(y, 1, -1.0), r"1 of 6 outputs \(1\) were at one end .* largest value -1"),
        (lambda y: -clip(y, 1, -1.0), r"1 of 6 outputs \(1\) were at one end .* smallest value 1"),
        (lambda y: clip(y, 1, -1.9), r"1 of 6 outputs \(1\) were at one end"),
        (lambda y: wrapped(y, np.int16, 20000), r"3 of 6 outputs \(0, 1, 2\) are whole numbers"),
        (lambda y: wrapped(y, np.int16, 20000).astype(np.float32), "3 of 6 outputs .* are whole numbers"),
        (lambda y: wrapped(y + 2, np.uint8, 80), "are whole numbers"),
        (lambda y: np.clip(wrapped(y + 2, int, 68), 0, 255), "whole numbers that reach the end"),
        (lambda y: np.clip(wrapped(y + 3, int, 900), 0, 4095), "whole numbers that reach the end"),
        (lambda y: 10e6 + y, "lost in float32"),
    ],
    ids=[
        "two constant", "top", "bottom", "nearly always", "int16", "int16 as float", "uint8", "full 8 bits",
        "full 12 bits", "offset",
    ],
)  # fmt: skip
def test_suspicious_outputs_are_warned_about_once(make: Callable[[Any], Any], message: str) -> None:
    device = Device(Modified(make))
    u = drives(Doubler(), 200).astype(np.float32)
    with pytest.warns(UserWarning, match=message) as caught:
        device.forward(u)
    assert len(caught) == 1
    with pytest.warns(UserWarning, match=message) as caught:
        Device(Modified(make)).calibrate(drives=u)
    assert len(caught) == 1
    device.forward(u)
    device.calibrate(drives=u)


@pytest.mark.parametrize(
    "make",
    [
        lambda y: y > 0,
        np.sign,
        lambda y: np.round(3 * y),
        lambda y: np.round(100 * y),
        lambda y: np.maximum(y + 1, 0),
        lambda y: wrapped(y, np.int16, 15000),
        lambda y: np.random.default_rng(0).poisson(20 * (y + 3)),
        lambda y: 1000 + y,
    ],
    ids=["bits", "signs", "few levels", "whole", "one-sided", "int16", "photons", "offset"],
)
def test_ordinary_outputs_are_not_warned_about(make: Callable[[Any], Any]) -> None:
    """One-sided: a quarter of output 0 is at 0, less than the share of a saturated output."""
    device = Device(Modified(make))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        device.forward(0.9 * drives(Doubler(), 300).astype(np.float32))


def test_outputs_that_stop_changing_are_warned_about() -> None:
    class Dying(Doubler):
        lamp = True

        def forward(self, u: Any) -> Any:
            return super().forward(u) if self.lamp else np.full((len(u), 6), 0.25)

    system = Dying()
    device = Device(system)
    u = drives(system, 100)
    device.forward(u)
    system.lamp = False
    device.forward(u)
    device.forward(u)
    with pytest.warns(UserWarning, match="last 300 outputs of the device are all the same"):
        device.forward(u)
    device.forward(u)


def test_outputs_that_do_not_depend_on_the_drive_are_warned_about() -> None:
    rng = np.random.default_rng(0)
    for n in (16, 256):
        undriven = Device(Modified(lambda y: rng.standard_normal(y.shape)))
        with pytest.warns(UserWarning, match="hardly more than between repetitions of one drive"):
            undriven.calibrate(n)
    # No warning: outputs that depend on the drive with twice the noise, and one such output among five
    # others.
    Device(Modified(lambda y: 2 * rng.standard_normal(y.shape) + y * [1, 1, 1, 2, 2, 2])).calibrate(256)
    Device(Modified(lambda y: rng.standard_normal(y.shape) + y * [1, 0, 0, 0, 0, 0])).calibrate(256)


def test_many_clipped_values_are_warned_about_once() -> None:
    device = Device(Doubler())
    u = drives(device, 100)
    device.forward(u)
    device.forward(1.05 * u)
    with pytest.warns(
        UserWarning, match=r"outside the input range \(-1\.0, 1\.0\) of the device and were clipped"
    ):
        device.forward(10 * u)
    device.forward(10 * u)


def test_the_members_of_a_system_are_checked() -> None:
    for name, value in (
        ("n_in", 2.5), ("n_out", 0), ("n_in", "3"), ("n_out", None), ("input_range", 1.0),
        ("input_range", (0.0, 0.5, 1.0)), ("input_range", ([0.0, 0.0], [1.0, 1.0])), ("input_range", "ab"),
    ):  # fmt: skip
        system = Doubler()
        setattr(system, name, value)
        with pytest.raises(BadValue, match=name):
            Device(system)


def test_nonideal_retries_failing_calls_when_it_measures_the_scale() -> None:
    assert NonIdeal(Frail(0.005)).scale == pytest.approx(NonIdeal(Doubler()).scale)


@pytest.mark.parametrize("bad", [1 + 1j, np.nan, 9.91e37], ids=["complex", "NaN", "SCPI"])
def test_nonlinearity_index_refuses_invalid_measurements(bad: Any) -> None:
    u = drives(Doubler(), 40)
    y = Doubler().forward(u)
    assert nonlinearity_index(u, y) == pytest.approx(0, abs=1e-12)
    broken = y.astype(complex) if isinstance(bad, complex) else y.copy()
    broken[3, 2] = bad
    for pair in ((u, broken), (broken, u), (u, y[:-1]), (u, np.ma.array(y, mask=y > 1))):
        with pytest.raises(BadValue):
            nonlinearity_index(*pair)


def test_standardize_returns_floats_for_integer_outputs() -> None:
    report = Device(Modified(lambda y: np.round(100 * y))).calibrate(64)
    np.testing.assert_allclose(
        report.standardize(np.full((1, 6), 7)), report.standardize(np.full((1, 6), 7.0)), rtol=1e-6
    )


def test_states_of_version_0_1_are_read() -> None:
    device = Device(AcousticCavity())
    device.calibrate(64)
    state = device.state_dict()
    calibration = state["calibration"]
    calibration["reference_answer"] = calibration.pop("reference_output")
    calibration["at"] = calibration.pop("time")
    resumed = Device(AcousticCavity())
    resumed.load_state_dict(state)
    assert resumed.calibration is not None and device.calibration is not None
    assert resumed.calibration.time == device.calibration.time
    np.testing.assert_array_equal(resumed.calibration.reference_output, device.calibration.reference_output)


def test_old_names_are_accepted_with_a_warning() -> None:
    class Old(Doubler):
        def differentiable_twin(self, mismatch: float = 0.0, seed: int = 0) -> Any:
            return torch.nn.Identity()

    with pytest.warns(FutureWarning, match=r"Old\.differentiable_twin is now digital_model"):
        assert find_digital_model(Old()) is not None
    assert find_digital_model(Doubler()) is None
    cavity = AcousticCavity(noise=0.0)
    u = torch.from_numpy(drives(cavity))
    for system in (cavity, NonIdeal(cavity)):
        with pytest.warns(FutureWarning, match="digital_model"):
            old = system.differentiable_twin(0.1, 3)
        assert torch.equal(old(u), system.digital_model(0.1, 3)(u))
    report = Device(cavity).calibrate(64)
    with pytest.warns(FutureWarning, match="standardize"):
        np.testing.assert_array_equal(report.standardise(u.numpy()), report.standardize(u.numpy()))
    with pytest.warns(FutureWarning, match="MultimodeFiber"):
        assert bpfree.physics.MultimodeFibre is bpfree.physics.MultimodeFiber
