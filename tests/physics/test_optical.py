"""The fibre: what optics says about it, exactly."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from bpfree._errors import BadValue
from bpfree.physics import MultimodeFibre, r_squared
from tests.physics.systems import drives, small_fibre

IDEAL: dict[str, Any] = {"drive_bits": None, "camera_bits": None, "saturation": None, "noise": 0.0}


def test_amplitude_in_and_intensity_out_is_exactly_quadratic() -> None:
    fibre = small_fibre(grid=5, mask_radius=2.5, detection="intensity", pool=1, **IDEAL)
    u = drives(fibre, 1200)
    y = fibre.forward(u)
    assert r_squared(u, y, degree=2) > 1 - 1e-9
    assert r_squared(u, y, degree=1) < 0.97
    pooled = small_fibre(grid=5, mask_radius=2.5, detection="intensity", pool=3, **IDEAL)
    assert r_squared(u, pooled.forward(u), degree=2) > 1 - 1e-9


@pytest.mark.parametrize("change", [{"kerr": 1.0}, {"encoding": "phase"}, {"detection": "amplitude"}])
def test_anything_else_is_not_quadratic(change: dict[str, Any]) -> None:
    options = {"detection": "intensity", **IDEAL, **change}
    fibre = small_fibre(grid=5, mask_radius=2.5, pool=1, **options)
    u = drives(fibre, 1200)
    assert r_squared(u, fibre.forward(u), degree=2) < 0.99


def test_more_kerr_is_more_nonlinear() -> None:
    def linear(kerr: float) -> float:
        fibre = small_fibre(grid=6, kerr=kerr, kerr_steps=4, detection="intensity", **IDEAL)
        u = drives(fibre, 800)
        return r_squared(u, fibre.forward(u))

    assert linear(0.0) > linear(1.0) > linear(5.0)


@pytest.mark.parametrize("kerr", [0.0, 2.0])
def test_a_lossless_fibre_conserves_energy(kerr: float) -> None:
    fibre = small_fibre(transmission="unitary", kerr=kerr, detection="intensity", pool=1, **IDEAL)
    core: Any = fibre.differentiable_twin().core
    u = torch.from_numpy(drives(fibre))
    modes = core.launch(u)
    energy = modes.abs().square().sum(1)
    torch.testing.assert_close(core.propagate(modes).abs().square().sum(1), energy)
    # And the camera, whose pixels are grid^2 / energy each, sees all of it.
    y = fibre.forward(u.numpy())
    np.testing.assert_allclose(y.sum(1) / fibre.grid**2, energy, rtol=1e-12)


def test_loss_takes_what_it_says() -> None:
    fibre = small_fibre(transmission="unitary", loss_db=3.0, **IDEAL)
    matrix = fibre.differentiable_twin().core.matrix
    share = torch.linalg.svdvals(matrix).square()
    assert float(share.max()) == pytest.approx(1) and float(share.min()) == pytest.approx(10**-0.3)


def test_the_answer_is_the_textbook_formula() -> None:
    """Against a slow way: explicit Fourier matrices, one row after the other."""
    fibre = small_fibre(grid=6, mask_radius=2.0, detection="intensity", pool=1, **IDEAL)
    core: Any = fibre.differentiable_twin().core
    matrix = core.matrix.numpy()
    k = np.array([0, 1, 2, -3, -2, -1])
    fourier = np.exp(-2j * np.pi * np.outer(np.arange(6), k) / 6).T / math.sqrt(6)
    inside = (k[:, None] ** 2 + k[None] ** 2 <= 4).ravel()
    two_d = np.kron(fourier, fourier)
    u = drives(fibre, 4)
    for row, answer in zip(u, fibre.forward(u), strict=True):
        field = np.zeros(36, complex)
        field[inside] = matrix @ ((two_d @ row)[inside] / math.sqrt(core.power))
        np.testing.assert_allclose(answer, 36 * np.abs(two_d.conj().T @ field) ** 2, rtol=1e-9, atol=1e-12)


def test_the_published_grid_guides_1257_modes_and_sees_676_pixels() -> None:
    fibre = MultimodeFibre(dtype=torch.float32)
    assert (fibre.modes, fibre.n_in, fibre.n_out) == (1257, 51 * 51, 26 * 26)


def test_random_drives_make_an_intensity_of_1() -> None:
    fibre = small_fibre(grid=16, mask_radius=6.0, detection="intensity", **IDEAL)
    assert fibre.forward(drives(fibre, 500)).mean() == pytest.approx(1, rel=0.1)


def test_converters_have_the_levels_they_say() -> None:
    fibre = small_fibre(detection="intensity", pool=1, camera_bits=3, saturation=2.0, drive_bits=1, noise=0.0)
    u = drives(fibre, 50)
    y = fibre.forward(u)
    np.testing.assert_allclose(np.unique(y), 2.0 * np.arange(8) / 7, rtol=1e-14)
    np.testing.assert_array_equal(fibre.forward((u > 0.5).astype(float)), y)


def test_shot_noise_is_poisson() -> None:
    fibre = small_fibre(detection="intensity", pool=1, photons=100.0, **IDEAL)
    u = np.repeat(drives(fibre, 1), 4000, axis=0)
    with fibre.frozen():
        clean = fibre.forward(u[:1])[0]
    y = fibre.forward(u)
    np.testing.assert_allclose(y.mean(0), clean, atol=6 * math.sqrt(clean.max() / 100 / 4000))
    bright = clean > 0.2
    np.testing.assert_allclose(y.var(0)[bright], clean[bright] / 100, rtol=0.15)


def test_phases_drift_and_the_field_correlation_is_the_gaussian_formula() -> None:
    fibre = small_fibre(grid=24, mask_radius=11.0, phase_sd=0.3, **IDEAL)
    matrix = fibre.differentiable_twin().core.matrix
    fibre.drift_time_s = 1.0
    fibre.advance(1e9)  # the phases are new, and independent of the old
    later = fibre.differentiable_twin().core.matrix
    correlation = (matrix.conj() * later).sum() / matrix.abs().square().sum()
    assert float(correlation.abs()) == pytest.approx(math.exp(-(0.3**2)), abs=0.02)
    torch.testing.assert_close(later.abs(), matrix.abs())


@pytest.mark.parametrize(
    ("options", "named"),
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
def test_bad_options_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(BadValue, match=named):
        small_fibre(**options)


def test_the_default_camera_averages_roots_and_not_intensities() -> None:
    fibre = small_fibre(grid=5, mask_radius=2.5, detection="amplitude", pool=3, **IDEAL)
    intensity = small_fibre(grid=5, mask_radius=2.5, detection="intensity", pool=1, **IDEAL)
    u = drives(fibre)
    roots = np.sqrt(intensity.forward(u)).reshape(len(u), 5, 5)
    padded = np.pad(roots, ((0, 0), (1, 1), (1, 1)))
    centers = range(0, 5, 2)
    expected = np.stack([padded[:, i : i + 3, j : j + 3].mean((1, 2)) for i in centers for j in centers], 1)
    np.testing.assert_allclose(fibre.forward(u), expected, rtol=1e-9)
    assert small_fibre().detection == "amplitude"
