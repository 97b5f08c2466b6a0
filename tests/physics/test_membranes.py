"""The box with membranes: resonance, linearity, and the effect of a cubic force."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from bpfree._errors import BadValue, DeviceError
from bpfree.physics import AcousticMembranes
from tests.physics.systems import drives


def short(**options: Any) -> AcousticMembranes:
    settings = {"tones_hz": (250.0, 350.0), "modes": 10, "duration_s": 0.04, "noise": 0.0, "sources": 2}
    return AcousticMembranes(**{**settings, "microphones": 2, "membranes": 3, "step_s": 1 / 16000, **options})


def test_one_mode_is_the_driven_oscillator() -> None:
    """|q| = gain w0^2 phi_s phi_m a / |w_n^2 - w^2 + i w w_n / Q|, after the transient."""
    box = short(modes=1, sources=1, microphones=1, coupling=0.0, back_action=0.0, q=5.0, duration_s=0.24)
    physics: Any = box.digital_model().physics
    wn = math.sqrt(float(physics.w2))
    y = box.forward(np.array([[1.0, 0.5]]))[0]
    for output, hz, a in zip(y, box.tones_hz, (1.0, 0.5), strict=True):
        w = 2 * math.pi * hz
        # at_sources contains gain w0^2
        expected = abs(float(physics.at_sources) * float(physics.at_microphones)) * a
        expected /= abs(wn**2 - w**2 + 1j * w * wn / 5)
        assert output == pytest.approx(expected, rel=0.02)


def test_smaller_steps_change_little() -> None:
    u = drives(short(), 4)
    coarse, fine = short(beta=0.5).forward(u), short(beta=0.5, step_s=1 / 64000).forward(u)
    np.testing.assert_allclose(coarse, fine, rtol=0.1, atol=0.02 * fine.mean())


def test_outputs_are_homogeneous_without_a_cubic_force_only() -> None:
    u = drives(short(), 4)
    linear = short(beta=0.0)
    np.testing.assert_allclose(linear.forward(2 * u), 2 * linear.forward(u), rtol=1e-9)
    cubic = short(beta=1.0)
    assert np.abs(cubic.forward(2 * u) / cubic.forward(u) - 2).max() > 0.05
    # The cubic force is negligible for small drives.
    np.testing.assert_allclose(cubic.forward(1e-4 * u), linear.forward(1e-4 * u), rtol=1e-4)


def test_temperature_scales_the_resonances_by_the_speed_of_sound() -> None:
    box = short(temperature_sd_k=2.0, drift_time_s=1.0)
    before = box.digital_model().physics.w2.sqrt()
    kelvin = 2.0 * float(box._disorder["temperature"])
    box.advance(0.5)
    after = box.digital_model().physics.w2.sqrt()
    change = (1 + 0.0017 * 2.0 * float(box._disorder["temperature"])) / (1 + 0.0017 * kelvin)
    torch.testing.assert_close(after / before, torch.full_like(before, change))
    assert change != 1


def test_diverging_motion_raises() -> None:
    with pytest.raises(DeviceError, match="diverged") as failure:
        short(beta=1e6).forward(np.ones((1, 4)))
    assert not failure.value.retryable


def test_tones_need_whole_periods_in_the_analysis_window() -> None:
    with pytest.raises(BadValue, match=r"260\.5"):
        short(tones_hz=(250.0, 260.5))
