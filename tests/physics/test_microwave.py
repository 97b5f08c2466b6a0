"""The microwave cavity: passive, resonant, and nonlinear in the configuration."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from bpfree._errors import BadValue
from bpfree.physics import MicrowaveCavity, r_squared
from bpfree.physics.microwave import unfolded_levels
from bpfree.physics.simulated import random
from tests.physics.systems import drives, small_microwave


@pytest.mark.parametrize("q", [30.0, 300.0, 3000.0])
@pytest.mark.parametrize("coupling", [0.1, 1.0])
def test_the_cavity_is_passive(q: float, coupling: float) -> None:
    cavity = small_microwave(q=q, atom_coupling=coupling, noise=0.0)
    values = torch.linalg.svdvals(cavity.scattering())
    assert float(values.max()) <= 1 + 1e-12
    assert float(values.min()) < 1, "the cavity has losses"
    assert cavity.forward(drives(cavity, 200)).max() <= 1


def test_a_cavity_that_amplifies_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss with the opposite sign is a gain."""
    cavity = small_microwave()
    cavity.q = -cavity.q
    with pytest.raises(AssertionError, match="passive"):
        cavity.scattering()


def test_scattering_matrix_is_symmetric() -> None:
    s = small_microwave().scattering()
    torch.testing.assert_close(s, s.mT)


def test_one_resonance_is_the_textbook_lorentzian() -> None:
    """One mode, two ports, no effect of atoms: S21 = -2 i w1 w2 / (f0 - f + i (f / 2Q + w1^2 + w2^2))."""
    cavity = small_microwave(modes=1, atoms=1, noise=0.0)
    w = (cavity._disorder["waves"][0] * math.sqrt(5e8 / math.pi)).numpy()
    w = w * np.sqrt([0.9, 0.9, cavity.atom_coupling])
    f = np.linspace(*cavity.band_hz, cavity.n_out)
    f0 = cavity.band_hz[0] - 2e8 + 5e8 * float(unfolded_levels(cavity._disorder["levels"])[0])
    # K = w w^T r; (1 + iK)^-1 (1 - iK) has the off-diagonal -2 i w w^T r / (1 + i r |w|^2).
    r = 1 / (f0 - f + 0.5j * f / cavity.q)
    expected = -2j * w[0] * w[1] * r / (1 + 1j * r * (w**2).sum())
    np.testing.assert_allclose(cavity.scattering()[:, 1, 0].numpy(), expected, rtol=1e-10)


def test_output_matches_sequentially_terminated_ports() -> None:
    """Against another formula: the ports of the atoms are terminated one by one."""
    cavity = small_microwave(atoms=3, receivers=2, bits=None, noise=0.0)
    u = drives(cavity, 3)
    s = cavity.scattering().numpy()
    for row, output in zip(u, cavity.forward(u), strict=True):
        loaded = s
        for value in row[::-1]:
            gamma = 0.95 * np.exp(1j * np.pi * (1 - value))
            last = loaded[:, -1:, -1:]
            loaded = (
                loaded[:, :-1, :-1] + loaded[:, :-1, -1:] * gamma / (1 - gamma * last) @ loaded[:, -1:, :-1]
            )
        np.testing.assert_allclose(output, np.abs(loaded[:, 1:, 0]).T.ravel(), rtol=1e-10)


def test_levels_are_unfolded_and_repel() -> None:
    normal = torch.from_numpy(random(0, "levels").standard_normal((400, 400)))
    levels = unfolded_levels(normal)
    spacing = levels.diff()
    assert float(levels.min()) >= 0 and float(levels.max()) <= 400
    assert float(spacing[50:-50].mean()) == pytest.approx(1, rel=0.02)
    # Wigner's surmise: P(s < 0.2) = 1 - exp(-pi 0.04 / 4) = 0.031; without repulsion it would be 0.18.
    assert float((spacing < 0.2).double().mean()) < 0.07


def test_a_sharper_and_better_coupled_cavity_is_more_nonlinear() -> None:
    def linear(q: float, coupling: float) -> float:
        cavity = MicrowaveCavity(
            atoms=12, frequencies=6, q=q, atom_coupling=coupling, noise=0.0, dtype=torch.float32
        )
        u = (drives(cavity, 400) > 0.5).astype(float)
        return r_squared(u, cavity.forward(u))

    assert linear(100, 0.1) > linear(300, 0.1) > linear(3000, 0.9)


def test_one_bit_has_two_states() -> None:
    cavity = small_microwave(noise=0.0)
    u = drives(cavity, 50)
    np.testing.assert_array_equal(cavity.forward(u), cavity.forward((u > 0.5).astype(float)))
    analog = small_microwave(noise=0.0, bits=None)
    corners = (u > 0.5).astype(float)
    np.testing.assert_allclose(analog.forward(corners), cavity.forward(corners), rtol=1e-10)


def test_digital_model_of_a_one_bit_surface_has_a_straight_through_gradient() -> None:
    cavity = small_microwave(noise=0.0)
    one_bit = cavity.digital_model()
    analog = small_microwave(noise=0.0, bits=None).digital_model()
    corners = torch.from_numpy((drives(cavity, 3) > 0.5).astype(float))
    gradients = []
    for model in (one_bit, analog):
        u = corners.clone().requires_grad_()
        model(u).sum().backward()
        gradients.append(u.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
    assert float(gradients[0].abs().max()) > 0


@pytest.mark.parametrize(
    "bad", [{"q": 0.0}, {"atoms": 0}, {"band_hz": (2e9, 1e9)}, {"reflection": 1.1}, {"atom_coupling": 0.0}]
)
def test_bad_options_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(BadValue, match=next(iter(bad))):
        small_microwave(**bad)
