"""The fitted cavity recovers the cavity of the measurements, and reports that it is a surrogate."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from bpfree._errors import BadValue
from bpfree.physics import CavitySurrogate, Device
from bpfree.physics.surrogate import fit_magnitudes
from bpfree.physics.system import Array

SOURCES, TONES = 3, 2


def measured(noise: float = 0.02, n: int = 1500) -> tuple[Array, Array, Array]:
    """Return drives, outputs, and the true complex weights of the first three outputs.

    Outputs 0 and 1 follow tones 0 and 1, output 2 tone 1 with an offset, output 3 is linear, output 4 noise.
    """
    rng = np.random.default_rng(0)
    u = rng.random((n, SOURCES * TONES))
    weights = rng.standard_normal((3, SOURCES + 1)) + 1j * rng.standard_normal((3, SOURCES + 1))
    weights[:2, -1] = 0
    a = u.reshape(n, SOURCES, TONES)
    fields = [a[:, :, tone] @ w[:-1] + w[-1] for tone, w in zip((0, 1, 1), weights, strict=True)]
    y = [*np.abs(fields), 0.3 + a[:, :, 0] @ np.array([0.5, -0.2, 0.1]), 0.01 * rng.standard_normal(n)]
    y = np.stack(y, axis=1)
    y[:, :4] += noise * rng.standard_normal((n, 4))
    return u, y, weights


@cache
def surrogate() -> CavitySurrogate:
    u, y, _ = measured()
    return CavitySurrogate(u, y, sources=SOURCES)


def test_fit_recovers_the_weights_up_to_a_common_phase() -> None:
    u, y, weights = measured(noise=0.0)
    a = np.concatenate([u.reshape(-1, SOURCES, TONES)[:, :, 0], np.ones((len(u), 1))], axis=1)
    result = fit_magnitudes(a[:, None], y[:, :1])[0]
    phase = weights[0, 0] / result[0]
    # A mirrored set of weights (complex conjugates) has the same magnitudes.
    mirrored = weights[0, 0] / result[0].conj()
    error = min(
        np.abs(result * phase / abs(phase) - weights[0]).max(),
        np.abs(result.conj() * mirrored / abs(mirrored) - weights[0]).max(),
    )
    assert error < 1e-6


def test_fit_selects_magnitude_or_linear_outputs_and_estimates_the_noise() -> None:
    model = surrogate()
    assert model.magnitudes[:3].all() and model.tone[:4].tolist() == [0, 1, 1, 0]
    assert (model.r_squared[:3] > 0.97).all() and abs(model.r_squared[4]) < 0.1
    # The residual is the noise of the measurements.
    np.testing.assert_allclose(model._residual[:3], 0.02, rtol=0.25)
    assert 0.98 < model.total_r_squared < 1


def test_outputs_match_the_cavity() -> None:
    u, _, _ = measured()
    clean = measured(noise=0.0)[1]
    model = surrogate()
    with model.frozen():
        y = model.forward(u[-200:])
    np.testing.assert_allclose(y[:, :4], clean[-200:, :4], atol=0.02)
    noise = model.forward(u[-200:]) - y
    np.testing.assert_allclose(noise.std(axis=0), model._residual, rtol=0.3)


def test_reports_contain_the_kind_and_the_rows_out_of_range() -> None:
    u, y, _ = measured()
    device = Device(CavitySurrogate(u, y, sources=SOURCES))
    device.forward(u[:30])
    assert device.report()["out_of_range_rows"] == 0
    device.forward(u[:10] / np.linalg.norm(u[:10], axis=1, keepdims=True) * 0.01)
    report = device.report()
    assert device.kind == report["kind"] == "surrogate" and report["surrogate"] is True
    assert report["out_of_range_rows"] == 10 and report["out_of_range_share"] == 0.25
    assert report["surrogate_r_squared"] > 0.98
    resumed = Device(CavitySurrogate(u, y, sources=SOURCES))
    resumed.load_state_dict(device.state_dict())
    assert resumed.report() == report
    np.testing.assert_array_equal(resumed.forward(u[:3]), device.forward(u[:3]))


def test_digital_model_is_exact_without_mismatch() -> None:
    model = surrogate()
    u = measured()[0][:20]
    with model.frozen():
        clean = model.forward(u)
    np.testing.assert_allclose(model.digital_model()(torch.from_numpy(u)).numpy(), clean)
    assert np.abs(model.digital_model(0.3)(torch.from_numpy(u)).numpy() - clean).mean() > 0.05


def test_invalid_measurements_are_refused() -> None:
    u, y, _ = measured()
    for bad in ((u[:50], y[:50]), (u, y[:-1]), (u[:, :-1], y)):
        with pytest.raises(BadValue, match="expected"):
            CavitySurrogate(*bad, sources=SOURCES)
    constant, unread = y.copy(), y.copy()
    constant[:, 1], unread[7, 1] = 0.5, 9.91e37
    for broken, why in ((y + 0j, "real channels"), (constant, r"outputs \(1\)"), (unread, "missing reading")):
        with pytest.raises(BadValue, match=why):
            CavitySurrogate(u, broken, sources=SOURCES)
