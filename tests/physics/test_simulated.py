"""What holds for every simulated system: seeds, chunks, drift, twins, frozen windows."""

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
def test_disorder_and_noise_have_seeds_of_their_own(make: Any) -> None:
    u = drives(make())

    def answer(**seeds: int) -> Any:
        return make(noise=0.1, **seeds).forward(u)

    np.testing.assert_array_equal(answer(), answer())
    assert not np.allclose(answer(), answer(seed_noise=1))
    with_noise = [make(noise=0.1, seed_noise=s) for s in (0, 1)]
    answers = []
    for system in with_noise:
        with system.frozen():
            answers.append(system.forward(u))
    np.testing.assert_array_equal(answers[0], answers[1])
    assert not np.allclose(make(noise=0).forward(u), make(noise=0, seed_device=1).forward(u))


@every
def test_answers_do_not_depend_on_chunks(make: Any) -> None:
    u = drives(make(), 7)
    whole = make(noise=0.0).forward(u)
    np.testing.assert_allclose(make(noise=0.0, chunk=3).forward(u), whole, rtol=1e-10, atol=1e-12)
    rows = Device(make(noise=0.0), max_rows=1).forward(u)
    np.testing.assert_allclose(rows, whole, rtol=1e-10, atol=1e-12)
    # Neither does the noise: it is drawn row after row.
    noisy = make(noise=0.1).forward(u)
    np.testing.assert_allclose(make(noise=0.1, chunk=3).forward(u), noisy, rtol=1e-10, atol=1e-12)


def test_noise_in_single_precision_is_drawn_row_after_row_and_goes_on_after_a_stop() -> None:
    def make(chunk: int = 256) -> Any:
        # 3 outputs: an odd number of draws leaves half a word in the generator.
        return AcousticCavity(2, 3, 1, noise=0.1, dtype=torch.float32, chunk=chunk)

    u = drives(make(), 7).astype(np.float32)
    whole = make().forward(u)
    np.testing.assert_allclose(make(chunk=2).forward(u), whole, rtol=1e-5)
    first, second = make(), make()
    first.forward(u[:3])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    np.testing.assert_allclose(second.forward(u[3:]), whole[3:], rtol=1e-5)


@every
def test_noise_has_the_given_size_and_frozen_ends_it(make: Any) -> None:
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
def test_the_exact_twin_is_the_device_and_others_come_apart(make: Any) -> None:
    system = make(noise=0.1)
    u = drives(system)
    with system.frozen():
        clean = system.forward(u)

    def twin(eps: float) -> Any:
        return system.differentiable_twin(eps)(torch.from_numpy(u)).detach().numpy()

    np.testing.assert_allclose(twin(0.0), clean, rtol=1e-9, atol=1e-9)
    errors = [np.abs(twin(eps) - clean).mean() for eps in (0.0, 0.05, 0.3, 1.0)]
    assert errors == sorted(errors) and errors[1] > 1e-6
    with pytest.raises(BadValue, match="eps"):
        system.differentiable_twin(1.5)


@every
def test_the_twin_has_the_gradient_of_finite_differences(make: Any) -> None:
    options = {"drive_bits": None, "camera_bits": None} if "fibre" in _name(make) else {}
    system = make(noise=0.0, **options)
    if getattr(system, "bits", None) is not None:
        pytest.skip("a 1-bit surface has a straight-through gradient only; see test_microwave")
    twin = system.differentiable_twin()
    u = torch.from_numpy(drives(system, 1) * 0.8 + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: twin(v)[:, :2], (u,), eps=1e-6, atol=1e-4)


def _name(make: Any) -> str:
    return next(name for name, other in SIMULATED.items() if other is make)


@every
def test_the_twin_holds_no_parameters_and_the_device_ignores_it(make: Any) -> None:
    system = make()
    twin = system.differentiable_twin()
    assert list(twin.parameters()) == []
    before = make().forward(drives(system))
    twin(torch.from_numpy(drives(system)))
    np.testing.assert_array_equal(system.forward(drives(system)), before)


@every
def test_drift_forgets_with_its_correlation_time(make: Any) -> None:
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
    with pytest.raises(BadValue, match="backwards"):
        system.advance(-1)


@every
def test_a_disturbed_device_is_its_twin_of_that_mismatch(make: Any) -> None:
    system = make(noise=0.0)
    u = drives(system)
    clean = system.forward(u)
    system.disturb(0.05)
    changed = system.forward(u)
    assert (
        0 < np.abs(changed - clean).mean() < np.abs(make(noise=0.0, seed_device=9).forward(u) - clean).mean()
    )


@every
def test_state_resumes_with_the_same_bits(make: Any) -> None:
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
    # A device that stood still has nothing to say of its disorder; one that is put back has its first one.
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
    # Without the correction of phases the QR decomposition's eigenvalues are not uniform on the circle.
    assert float(torch.linalg.det(u).mean().abs()) < 0.1
    assert float(u.mean(0).abs().max()) < 0.1
