"""Each imperfection of the electronics around a system."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from bpfree._errors import BadValue
from bpfree.physics import AcousticCavity, Device, NonIdeal, PhysicalSystem
from tests.physics.systems import Doubler, drives


class Constant(Doubler):
    """Returns 3 for every drive."""

    def forward(self, u: Any) -> Any:
        return np.full((len(u), self.n_out), 3.0, u.dtype)

    def frozen(self) -> Any:
        from contextlib import nullcontext

        return nullcontext()


ROWS = np.zeros((6000, 3))


def test_without_options_outputs_do_not_change() -> None:
    wrapped = NonIdeal(Doubler())
    assert isinstance(wrapped, PhysicalSystem)
    u = drives(Doubler())
    np.testing.assert_array_equal(wrapped.forward(u), Doubler().forward(u))


def test_dac_levels() -> None:
    u = drives(Doubler(), 200)
    y = NonIdeal(Doubler(), dac_bits=2).forward(u)
    np.testing.assert_allclose(np.unique(y[:, 0]), [-2, -2 / 3, 2 / 3, 2])
    assert np.abs(y[:, 0] - 2 * u[:, 0]).max() <= 2 / 3 + 1e-12


def test_adc_levels_and_saturation() -> None:
    y = NonIdeal(Doubler(), adc_bits=3, saturation=0.5, scale=1.0, signed=True).forward(
        drives(Doubler(), 300)
    )
    np.testing.assert_allclose(np.unique(y), 0.5 * (2 * np.arange(8) / 7 - 1), atol=1e-12)
    unsigned = NonIdeal(Doubler(), saturation=0.5, scale=1.0).forward(drives(Doubler(), 300))
    assert unsigned.min() == 0 and unsigned.max() == 0.5


def test_input_noise_is_added_and_clipped_to_the_input_range() -> None:
    u = np.zeros((4000, 3))
    y = NonIdeal(Doubler(), input_noise=0.05).forward(u)
    assert (y[:, :3] / 2).std() == pytest.approx(0.05 * 2, rel=0.05)
    clipped = NonIdeal(Doubler(), input_noise=0.5).forward(u)
    assert np.abs(clipped[:, :3]).max() <= 2


@pytest.mark.parametrize(
    ("options", "sd"),
    [
        ({"additive": 0.1}, 0.1 * 3),
        ({"multiplicative": 0.1}, 0.1 * 3),
        ({"photons": 50.0}, 3 / math.sqrt(50)),
        ({"additive": 0.1, "scale": 1.0}, 0.1),
    ],
)
def test_output_noise_has_the_given_size(options: dict[str, float], sd: float) -> None:
    system = NonIdeal(Constant(), **options)  # type: ignore[arg-type]
    y = system.forward(ROWS)
    assert y.std() == pytest.approx(sd, rel=0.03) and y.mean() == pytest.approx(3, abs=0.02)
    with system.frozen():
        np.testing.assert_array_equal(system.forward(ROWS[:5]), np.full((5, 6), 3.0))


def test_gain_and_offset_drift_from_0_to_the_given_standard_deviation() -> None:
    system = NonIdeal(Constant(), gain_drift=0.2, offset_drift=0.1, drift_time_s=1.0)
    np.testing.assert_array_equal(system.forward(ROWS[:1]), np.full((1, 6), 3.0))
    outputs = []
    for _ in range(3000):
        system.advance(10.0)
        outputs.append(system.forward(ROWS[:1])[0])
    # 3 (1 + 0.2 g) + 0.1 * 3 o
    assert np.std(outputs) == pytest.approx(3 * math.sqrt(0.2**2 + 0.1**2), rel=0.05)
    slow = NonIdeal(Constant(), gain_drift=0.2, drift_time_s=1000.0)
    slow.advance(1.0)
    assert np.abs(slow.forward(ROWS[:1]) - 3).max() < 0.2


def test_advance_reaches_the_system_and_rows_take_time() -> None:
    inner = AcousticCavity(noise=0.0, drift_time_s=5.0)
    system = NonIdeal(inner, gain_drift=0.1, drift_time_s=5.0, seconds_per_pass=0.5)
    system.advance(2.0)
    assert inner.time_s == 2.0 and system.time_s == 2.0
    system.forward(drives(system, 4))
    assert system.time_s == 4.0


def test_digital_model_has_converters_and_saturation_but_no_noise() -> None:
    inner = AcousticCavity(noise=0.0)
    system = NonIdeal(inner, dac_bits=4, adc_bits=6, saturation=1.5, additive=0.1)
    u = drives(system)
    with system.frozen():
        clean = system.forward(u)
    x = torch.from_numpy(u).requires_grad_()
    y = system.digital_model()(x)
    np.testing.assert_allclose(y.detach().numpy(), clean, atol=1e-9)
    y.sum().backward()
    assert x.grad is not None and float(x.grad.abs().min()) > 0, (
        "the gradient of quantization is straight-through"
    )


def test_wrappers_can_be_nested() -> None:
    device = Device(NonIdeal(NonIdeal(AcousticCavity(), additive=0.1), dac_bits=6))
    assert device.kind == "simulated"
    with device.frozen():
        u = drives(device)
        np.testing.assert_array_equal(device.forward(u), device.forward(u))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"adc_bits": 4}, "saturation"),
        ({"gain_drift": 0.1}, "drift_time_s"),
        ({"additive": -0.1}, "additive = -0.1"),
        ({"photons": 0.0}, "photons"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(BadValue, match=word):
        NonIdeal(Doubler(), **options)


def test_missing_methods_of_the_system_raise() -> None:
    system = NonIdeal(Doubler(), additive=0.1)
    with pytest.raises(BadValue, match="frozen"), system.frozen():
        pass
    with pytest.raises(BadValue, match="digital model"):
        system.digital_model()


def test_read_noise_comes_before_the_converter() -> None:
    y = NonIdeal(Constant(), additive=0.3, adc_bits=3, saturation=2.0, scale=3.0).forward(ROWS)
    levels = 6 * np.arange(8) / 7
    assert np.abs(y[:, :1] - levels).min(1).max() < 1e-12
    assert len(np.unique(y.round(9))) > 3


class Clocked(Doubler):
    """Has a clock, a state and an end."""

    time_s, closed = 0.0, False

    def advance(self, seconds: float) -> None:
        self.time_s += seconds

    def frozen(self) -> Any:
        return nullcontext()

    def state_dict(self) -> dict[str, Any]:
        return {"time_s": self.time_s}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.time_s = state["time_s"]

    def close(self) -> None:
        self.closed = True


def test_a_resumed_system_answers_as_the_uninterrupted_one_bit_for_bit() -> None:
    options: dict[str, Any] = {"gain_drift": 0.1, "offset_drift": 0.1, "drift_time_s": 5.0, "additive": 0.1}
    first, second = (NonIdeal(Clocked(), **options, seed=seed) for seed in (1, 2))
    u = drives(first, 4)
    first.advance(3.0)
    first.forward(u)
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        np.testing.assert_array_equal(second.forward(u), first.forward(u))
        first.advance(1.0)
        second.advance(1.0)
    assert second.system.time_s == first.system.time_s == 5.0  # type: ignore[attr-defined]


def test_time_stands_still_for_frozen_electronics_and_runs_forward_alone() -> None:
    system = NonIdeal(Clocked(), gain_drift=0.1, drift_time_s=1.0)
    u = drives(system, 4)
    system.advance(2.0)
    with system.frozen():
        before = system.forward(u)
        system.advance(2.0)
        np.testing.assert_array_equal(system.forward(u), before)
    assert (system.time_s, system.system.time_s) == (2.0, 4.0)  # type: ignore[attr-defined]
    with pytest.raises(BadValue, match=r"advance\(-1\.0\): expected at least 0 seconds"):
        system.advance(-1.0)


def test_a_dead_system_has_no_scale_and_closing_reaches_the_system() -> None:
    class Dead(Doubler):
        def forward(self, u: Any) -> Any:
            return np.zeros((len(u), self.n_out))

    with pytest.raises(BadValue, match="switched on"):
        NonIdeal(Dead())
    system = Clocked()
    NonIdeal(system).close()
    assert system.closed
    NonIdeal(Doubler()).close()  # has nothing to close
