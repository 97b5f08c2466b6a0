"""Every simulated system: seeds, chunks, drift, digital models, frozen state."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from bpfree._errors import BadValue
from bpfree.physics import AcousticCavity, Device, Simulated
from bpfree.physics.simulated import haar_unitary, random
from tests.physics.systems import SIMULATED, drives

every = pytest.mark.parametrize("make", SIMULATED.values(), ids=SIMULATED.keys())


@every
def test_shapes_dtypes_and_kind(make: Any) -> None:
    system = make()
    u = drives(system)
    y = system.forward(u)
    assert y.shape == (16, system.n_out) and y.dtype == np.float64 and system.kind == "simulated"
    assert system.forward(u.astype(np.float32)).dtype == np.float32
    assert system.forward(u[:0]).shape == (0, system.n_out)


@every
def test_disorder_and_noise_have_separate_seeds(make: Any) -> None:
    u = drives(make())

    def output(**seeds: int) -> Any:
        return make(noise=0.1, **seeds).forward(u)

    np.testing.assert_array_equal(output(), output())
    assert not np.allclose(output(), output(seed_noise=1))
    with_noise = [make(noise=0.1, seed_noise=s) for s in (0, 1)]
    outputs = []
    for system in with_noise:
        with system.frozen():
            outputs.append(system.forward(u))
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert not np.allclose(make(noise=0).forward(u), make(noise=0, seed_device=1).forward(u))


@every
def test_outputs_do_not_depend_on_chunks(make: Any) -> None:
    u = drives(make(), 7)
    whole = make(noise=0.0).forward(u)
    np.testing.assert_allclose(make(noise=0.0, chunk=3).forward(u), whole, rtol=1e-10, atol=1e-12)
    rows = Device(make(noise=0.0), max_rows=1).forward(u)
    np.testing.assert_allclose(rows, whole, rtol=1e-10, atol=1e-12)
    # The noise does not either: it is sampled row by row.
    noisy = make(noise=0.1).forward(u)
    np.testing.assert_allclose(make(noise=0.1, chunk=3).forward(u), noisy, rtol=1e-10, atol=1e-12)


def test_noise_in_single_precision_is_sampled_by_row_and_resumes() -> None:
    def make(chunk: int = 256) -> Any:
        # 3 outputs: an odd number of samples leaves half a word in the generator.
        return AcousticCavity(2, 3, 1, noise=0.1, dtype=torch.float32, chunk=chunk)

    u = drives(make(), 7).astype(np.float32)
    whole = make().forward(u)
    np.testing.assert_allclose(make(chunk=2).forward(u), whole, rtol=1e-5)
    first, second = make(), make()
    first.forward(u[:3])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    np.testing.assert_allclose(second.forward(u[3:]), whole[3:], rtol=1e-5)


@every
def test_noise_has_the_given_size_and_is_off_while_frozen(make: Any) -> None:
    system = make(noise=0.1)
    if hasattr(system, "saturation"):
        pytest.skip("noise comes before the camera's saturation and pooling; see test_optical")
    u = np.repeat(drives(system, 1), 1000, axis=0)
    with system.frozen():
        clean = system.forward(u)
        mean = np.abs(system.forward(drives(system, 500))).mean()
    assert np.ptp(clean, axis=0).max() < 1e-12
    residual = system.forward(u) - clean
    np.testing.assert_allclose(residual.std(axis=0), 0.1 * mean, rtol=0.2)


@every
def test_digital_model_is_exact_without_mismatch_and_its_error_grows(make: Any) -> None:
    system = make(noise=0.1)
    u = drives(system)
    with system.frozen():
        clean = system.forward(u)

    def model(eps: float) -> Any:
        return system.digital_model(eps)(torch.from_numpy(u)).detach().numpy()

    np.testing.assert_allclose(model(0.0), clean, rtol=1e-9, atol=1e-9)
    errors = [np.abs(model(eps) - clean).mean() for eps in (0.0, 0.05, 0.3, 1.0)]
    assert errors == sorted(errors) and errors[1] > 1e-6
    with pytest.raises(BadValue, match="eps"):
        system.digital_model(1.5)


@every
def test_digital_model_has_the_gradient_of_finite_differences(make: Any) -> None:
    options = {"drive_bits": None, "camera_bits": None} if "fiber" in _name(make) else {}
    system = make(noise=0.0, **options)
    if getattr(system, "bits", None) is not None:
        pytest.skip("a 1-bit surface has a straight-through gradient only; see test_microwave")
    model = system.digital_model()
    u = torch.from_numpy(drives(system, 1) * 0.8 + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: model(v)[:, :2], (u,), eps=1e-6, atol=1e-4)


def _name(make: Any) -> str:
    return next(name for name, other in SIMULATED.items() if other is make)


@every
def test_digital_model_has_no_parameters_and_does_not_change_the_device(make: Any) -> None:
    system = make()
    model = system.digital_model()
    assert list(model.parameters()) == []
    before = make().forward(drives(system))
    model(torch.from_numpy(drives(system)))
    np.testing.assert_array_equal(system.forward(drives(system)), before)


@every
def test_drift_has_the_given_correlation_time(make: Any) -> None:
    system = make(noise=0.0, drift_time_s=10.0)
    before = {name: part.clone() for name, part in system._disorder.items()}
    system.advance(5.0)
    for name, part in system._disorder.items():
        moved = system.drifting is None or name in system.drifting
        if not moved:
            assert torch.equal(part, before[name])
        elif part.numel() > 500:
            correlation = (part * before[name]).mean() / before[name].square().mean()
            assert float(correlation) == pytest.approx(math.exp(-0.5), abs=0.1)
            assert float(part.std()) == pytest.approx(1, abs=0.1)
        else:
            assert not torch.equal(part, before[name])
    assert system.time_s == 5.0


@every
def test_time_passes_with_the_rows_and_not_while_frozen(make: Any) -> None:
    system = make(noise=0.0, drift_time_s=10.0, seconds_per_pass=0.5)
    u = drives(system, 4)
    with system.frozen():
        first = system.forward(u)
        system.advance(100.0)
        np.testing.assert_array_equal(system.forward(u), first)
    assert system.time_s == 0
    system.forward(u)
    assert system.time_s == 2.0
    with system.frozen():
        assert not np.allclose(system.forward(u), first)
    with pytest.raises(BadValue, match="at least 0 seconds"):
        system.advance(-1)


@every
def test_disturb_changes_a_device_by_the_given_amount(make: Any) -> None:
    system = make(noise=0.0)
    u = drives(system)
    clean = system.forward(u)
    system.disturb(0.05)
    changed = system.forward(u)
    assert (
        0 < np.abs(changed - clean).mean() < np.abs(make(noise=0.0, seed_device=9).forward(u) - clean).mean()
    )


@every
def test_state_resumes_bit_for_bit(make: Any) -> None:
    def run(system: Simulated) -> Any:
        system.advance(1.0)
        return system.forward(u)

    options = {"noise": 0.1, "drift_time_s": 10.0, "seconds_per_pass": 0.1}
    first = make(**options)
    u = drives(first, 3)
    run(first)
    second = make(**options)
    second.load_state_dict(first.state_dict())
    np.testing.assert_array_equal(run(first), run(second))
    first.disturb(0.3)
    second.load_state_dict(first.state_dict())
    np.testing.assert_array_equal(run(first), run(second))
    # The state of a device without drift has no disorder; loading it restores the initial disorder.
    second.load_state_dict(make(noise=0.1).state_dict())
    with second.frozen():
        np.testing.assert_array_equal(second.forward(u), make(noise=0.0).forward(u))
    assert make().state_dict()["disorder"] == {}


@pytest.mark.parametrize(
    "bad", [{"noise": -1.0}, {"chunk": 0}, {"drift_time_s": 0.0}, {"seconds_per_pass": -1.0}]
)
def test_bad_options_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(BadValue, match=next(iter(bad))):
        SIMULATED["acoustic"](**bad)


def test_haar_unitary_is_unitary_and_has_no_preferred_phase() -> None:
    normal = torch.from_numpy(random(0, "test").standard_normal((2, 400, 3, 3)))
    u = haar_unitary(*normal)
    torch.testing.assert_close(u @ u.mH, torch.eye(3, dtype=u.dtype).expand(400, 3, 3))
    # Without a correction of phases, the eigenvalues of a QR decomposition are not uniform on the circle.
    assert float(torch.linalg.det(u).mean().abs()) < 0.1
    assert float(u.mean(0).abs().max()) < 0.1
