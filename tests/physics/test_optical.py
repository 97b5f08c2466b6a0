"""The multimode fiber against exact results of optics."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from bpfree._errors import BadValue
from bpfree.physics import MultimodeFiber, r_squared
from tests.physics.systems import drives, small_fiber

IDEAL: dict[str, Any] = {"drive_bits": None, "camera_bits": None, "saturation": None, "noise": 0.0}


def test_amplitude_in_and_intensity_out_is_exactly_quadratic() -> None:
    fiber = small_fiber(grid=5, mask_radius=2.5, detection="intensity", pool=1, **IDEAL)
    u = drives(fiber, 1200)
    y = fiber.forward(u)
    assert r_squared(u, y, degree=2) > 1 - 1e-9
    assert r_squared(u, y, degree=1) < 0.97
    pooled = small_fiber(grid=5, mask_radius=2.5, detection="intensity", pool=3, **IDEAL)
    assert r_squared(u, pooled.forward(u), degree=2) > 1 - 1e-9


@pytest.mark.parametrize("change", [{"kerr": 1.0}, {"encoding": "phase"}, {"detection": "amplitude"}])
def test_other_settings_are_not_quadratic(change: dict[str, Any]) -> None:
    options = {"detection": "intensity", **IDEAL, **change}
    fiber = small_fiber(grid=5, mask_radius=2.5, pool=1, **options)
    u = drives(fiber, 1200)
    assert r_squared(u, fiber.forward(u), degree=2) < 0.99


def test_more_kerr_is_more_nonlinear() -> None:
    def linear(kerr: float) -> float:
        fiber = small_fiber(grid=6, kerr=kerr, kerr_steps=4, detection="intensity", **IDEAL)
        u = drives(fiber, 800)
        return r_squared(u, fiber.forward(u))

    assert linear(0.0) > linear(1.0) > linear(5.0)


@pytest.mark.parametrize("kerr", [0.0, 2.0])
def test_a_lossless_fiber_conserves_energy(kerr: float) -> None:
    fiber = small_fiber(transmission="unitary", kerr=kerr, detection="intensity", pool=1, **IDEAL)
    physics: Any = fiber.digital_model().physics
    u = torch.from_numpy(drives(fiber))
    modes = physics.launch(u)
    energy = modes.abs().square().sum(1)
    end = (physics.kerr_effect(modes, physics.steps) if kerr else modes) @ physics.matrix.T
    torch.testing.assert_close(end.abs().square().sum(1), energy)
    # The mean over the pixels of the camera is the same energy.
    y = fiber.forward(u.numpy())
    np.testing.assert_allclose(y.sum(1) / fiber.grid**2, energy, rtol=1e-12)


def test_loss_has_the_given_decibels() -> None:
    fiber = small_fiber(transmission="unitary", loss_db=3.0, **IDEAL)
    matrix = fiber.digital_model().physics.matrix
    share = torch.linalg.svdvals(matrix).square()
    assert float(share.max()) == pytest.approx(1) and float(share.min()) == pytest.approx(10**-0.3)


def test_output_matches_explicit_fourier_matrices() -> None:
    """Against a slow implementation with explicit Fourier matrices, row by row."""
    fiber = small_fiber(grid=6, mask_radius=2.0, detection="intensity", pool=1, **IDEAL)
    physics: Any = fiber.digital_model().physics
    matrix = physics.matrix.numpy()
    k = np.array([0, 1, 2, -3, -2, -1])
    fourier = np.exp(-2j * np.pi * np.outer(np.arange(6), k) / 6).T / math.sqrt(6)
    inside = (k[:, None] ** 2 + k[None] ** 2 <= 4).ravel()
    two_d = np.kron(fourier, fourier)
    u = drives(fiber, 4)
    for row, output in zip(u, fiber.forward(u), strict=True):
        field = np.zeros(36, complex)
        field[inside] = matrix @ ((two_d @ row)[inside] / math.sqrt(physics.power))
        np.testing.assert_allclose(output, 36 * np.abs(two_d.conj().T @ field) ** 2, rtol=1e-9, atol=1e-12)


def test_default_grid_has_the_published_1257_modes_and_676_pixels() -> None:
    fiber = MultimodeFiber(dtype=torch.float32)
    assert (fiber.modes, fiber.n_in, fiber.n_out) == (1257, 51 * 51, 26 * 26)


def test_mean_intensity_of_random_drives_is_1() -> None:
    fiber = small_fiber(grid=16, mask_radius=6.0, detection="intensity", **IDEAL)
    assert fiber.forward(drives(fiber, 500)).mean() == pytest.approx(1, rel=0.1)


def test_converters_have_the_given_levels() -> None:
    fiber = small_fiber(detection="intensity", pool=1, camera_bits=3, saturation=2.0, drive_bits=1, noise=0.0)
    u = drives(fiber, 50)
    y = fiber.forward(u)
    np.testing.assert_allclose(np.unique(y), 2.0 * np.arange(8) / 7, rtol=1e-14)
    np.testing.assert_array_equal(fiber.forward((u > 0.5).astype(float)), y)


def test_shot_noise_is_poisson() -> None:
    fiber = small_fiber(detection="intensity", pool=1, photons=100.0, **IDEAL)
    u = np.repeat(drives(fiber, 1), 4000, axis=0)
    with fiber.frozen():
        clean = fiber.forward(u[:1])[0]
    y = fiber.forward(u)
    np.testing.assert_allclose(y.mean(0), clean, atol=6 * math.sqrt(clean.max() / 100 / 4000))
    bright = clean > 0.2
    np.testing.assert_allclose(y.var(0)[bright], clean[bright] / 100, rtol=0.15)


def test_phases_drift_and_the_field_correlation_is_the_gaussian_formula() -> None:
    fiber = small_fiber(grid=24, mask_radius=11.0, phase_sd=0.3, **IDEAL)
    matrix = fiber.digital_model().physics.matrix
    fiber.drift_time_s = 1.0
    fiber.advance(1e9)  # the phases are independent of the initial ones
    later = fiber.digital_model().physics.matrix
    correlation = (matrix.conj() * later).sum() / matrix.abs().square().sum()
    assert float(correlation.abs()) == pytest.approx(math.exp(-(0.3**2)), abs=0.02)
    torch.testing.assert_close(later.abs(), matrix.abs())


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"transmission": "free"}, "transmission"),
        ({"encoding": "both"}, "encoding"),
        ({"detection": "phase"}, "detection"),
        ({"mask_radius": 9.0}, "mask_radius"),
        ({"pool": 2}, "pool"),
        ({"saturation": None}, "camera_bits"),
        ({"photons": 0.0}, "photons"),
        ({"drive_bits": 0}, "bits"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(BadValue, match=word):
        small_fiber(**options)


def test_amplitude_detection_pools_square_roots() -> None:
    fiber = small_fiber(grid=5, mask_radius=2.5, detection="amplitude", pool=3, **IDEAL)
    intensity = small_fiber(grid=5, mask_radius=2.5, detection="intensity", pool=1, **IDEAL)
    u = drives(fiber)
    roots = np.sqrt(intensity.forward(u)).reshape(len(u), 5, 5)
    padded = np.pad(roots, ((0, 0), (1, 1), (1, 1)))
    centers = range(0, 5, 2)
    expected = np.stack([padded[:, i : i + 3, j : j + 3].mean((1, 2)) for i in centers for j in centers], 1)
    np.testing.assert_allclose(fiber.forward(u), expected, rtol=1e-9)
    assert small_fiber().detection == "amplitude"
