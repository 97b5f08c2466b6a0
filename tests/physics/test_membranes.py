"""The box with membranes: resonance, superposition, and what a cubic spring does to them."""

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
    """|q| = gain w0^2 phi_s phi_m a / |w_n^2 - w^2 + i w w_n / Q|, once the ringing is over."""
    box = short(modes=1, sources=1, microphones=1, coupling=0.0, back_action=0.0, q=5.0, duration_s=0.24)
    core: Any = box.differentiable_twin().core
    wn = math.sqrt(float(core.w2))
    y = box.forward(np.array([[1.0, 0.5]]))[0]
    for answer, hz, a in zip(y, box.tones_hz, (1.0, 0.5), strict=True):
        w = 2 * math.pi * hz
        # at_sources has gain w0^2 in it
        expected = abs(float(core.at_sources) * float(core.at_microphones)) * a
        expected /= abs(wn**2 - w**2 + 1j * w * wn / 5)
        assert answer == pytest.approx(expected, rel=0.02)


def test_smaller_steps_change_little() -> None:
    u = drives(short(), 4)
    coarse, fine = short(beta=0.5).forward(u), short(beta=0.5, step_s=1 / 64000).forward(u)
    np.testing.assert_allclose(coarse, fine, rtol=0.1, atol=0.02 * fine.mean())


def test_linear_membranes_keep_superposition_and_a_cubic_spring_does_not() -> None:
    u = drives(short(), 4)
    linear = short(beta=0.0)
    np.testing.assert_allclose(linear.forward(2 * u), 2 * linear.forward(u), rtol=1e-9)
    cubic = short(beta=1.0)
    assert np.abs(cubic.forward(2 * u) / cubic.forward(u) - 2).max() > 0.05
    # At a whisper the cubic force is nothing.
    np.testing.assert_allclose(cubic.forward(1e-4 * u), linear.forward(1e-4 * u), rtol=1e-4)


def test_warmth_moves_the_resonances_by_the_speed_of_sound() -> None:
    box = short(temperature_sd_k=2.0, drift_time_s=1.0)
    before = box.differentiable_twin().core.w2.sqrt()
    kelvin = 2.0 * float(box._disorder["temperature"])
    box.advance(0.5)
    after = box.differentiable_twin().core.w2.sqrt()
    change = (1 + 0.0017 * 2.0 * float(box._disorder["temperature"])) / (1 + 0.0017 * kelvin)
    torch.testing.assert_close(after / before, torch.full_like(before, change))
    assert change != 1


def test_motion_that_diverges_is_an_error() -> None:
    with pytest.raises(DeviceError, match="diverged") as failure:
        short(beta=1e6).forward(np.ones((1, 4)))
    assert not failure.value.retryable


def test_tones_must_fit_the_window() -> None:
    with pytest.raises(BadValue, match=r"260\.5"):
        short(tones_hz=(250.0, 260.5))
