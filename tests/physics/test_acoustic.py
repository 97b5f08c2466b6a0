"""The acoustic cavity: coherent mixing and magnitudes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bpfree._errors import BadValue
from bpfree.physics import AcousticCavity, r_squared
from tests.physics.systems import drives


def test_output_matches_explicit_magnitude_model() -> None:
    """Against loops over microphones, tones and sources."""
    cavity = AcousticCavity(3, 4, 2, intermodulation=0.3, noise=0.0)
    physics = cavity.digital_model().physics
    h, c = physics.transfer.numpy(), physics.mixing.numpy()
    u = drives(cavity, 3)
    for row, output in zip(u, cavity.forward(u), strict=True):
        for m in range(2):
            lin = [sum(h[m, s, k] * row[4 * s + k] for s in range(3)) for k in range(4)]
            for k in range(4):
                mixed = sum(c[m, k, i, j] * lin[i] * lin[j].conjugate() for i in range(4) for j in range(4))
                assert output[4 * m + k] == pytest.approx(abs(lin[k] + 0.3 * mixed), rel=1e-12)


def test_without_intermodulation_outputs_are_homogeneous_and_tones_independent() -> None:
    cavity = AcousticCavity(intermodulation=0.0, noise=0.0)
    u = drives(cavity)
    y = cavity.forward(u)
    np.testing.assert_allclose(cavity.forward(0.5 * u), 0.5 * y, rtol=1e-12)
    other = u.copy()
    other[:, 2::5] = 0.3  # tone 2 of every source
    changed = np.abs(cavity.forward(other) - y).max(axis=0) > 1e-12
    assert np.flatnonzero(changed).tolist() == [2, 7, 12, 17]


def test_intermodulation_increases_the_nonlinearity_index() -> None:
    def linear(strength: float) -> float:
        cavity = AcousticCavity(intermodulation=strength, noise=0.0)
        u = drives(cavity, 2000)
        return r_squared(u, cavity.forward(u))

    assert 0.95 > linear(0.0) > linear(0.3) > 0.5


def test_transfer_function_has_the_given_power_and_correlation() -> None:
    cavity = AcousticCavity(4, 5, 4000, intermodulation=0.0, noise=0.0, correlation=2.0)
    h: torch.Tensor = cavity.digital_model().physics.transfer
    assert float(h.abs().square().mean()) == pytest.approx(1 / 4, rel=0.02)
    for lag in (1, 3):
        correlation = (h[..., lag:] * h[..., :-lag].conj()).mean() / h.abs().square().mean()
        assert float(correlation.real) == pytest.approx(np.exp(-lag / 2), abs=0.03)


@pytest.mark.parametrize("bad", [{"sources": 0}, {"intermodulation": -1.0}, {"correlation": -1.0}])
def test_bad_options_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(BadValue, match=next(iter(bad))):
        AcousticCavity(**bad)  # type: ignore[arg-type]
