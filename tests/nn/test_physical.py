"""Networks with devices inside: features, normalisation, what is counted, twins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bpfree import BadValue
from bpfree.nn import PhysicalFront, apparatus, asking, passes, physical_net
from bpfree.nn.drives import Drive, UnitNorm
from bpfree.nn.twins import TwinFront
from bpfree.physics import AcousticCavity, Device


class Square:
    """Squares what it is sent, with a gain and an offset for each output."""

    n_in, n_out, input_range = 4, 4, (-10.0, 10.0)
    gain = np.array([1.0, 2.0, 3.0, 0.0])

    def forward(self, u: Any) -> Any:
        return (self.gain * (u**2) + 5).astype(u.dtype)


def front(**options: Any) -> PhysicalFront:
    device = Device(Square())
    return PhysicalFront(device, Drive(4, device.input_range), 3, **{"skip": True, **options})


ROWS = torch.tensor([[1.0, -2.0, 3.0], [0.5, 0.0, 1.0]])


def test_features_are_the_answer_and_the_rows_that_were_sent() -> None:
    answer = torch.tensor([[6.0, 13.0, 32.0, 5.0], [5.25, 5.0, 8.0, 5.0]])
    assert torch.equal(front()(ROWS), torch.cat([answer, ROWS], 1))
    assert torch.equal(front(skip=False)(ROWS), answer)
    assert front().n_features == 7 and front(skip=False).n_features == 4


def test_normalisations() -> None:
    answer = front(skip=False)(ROWS)
    l2 = front(skip=False, normalise="l2")(ROWS)
    torch.testing.assert_close(l2, 2 * answer / answer.norm(dim=1, keepdim=True))
    by_row = front(skip=False, normalise="standardise")(ROWS)
    torch.testing.assert_close(by_row.mean(1), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(by_row.square().mean(1), torch.ones(2))


def test_calibration_centres_and_scales_each_output_and_leaves_a_dead_one_at_zero() -> None:
    calibrated = front(skip=False, normalise="calibrated")
    rows = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match=r"1 of 4 outputs \(3\) never changed"):
        calibrated.calibrate(rows)
    found = calibrated(rows)
    assert found.quantile(0.5, dim=0).abs().max() < 1e-5
    # The gains are gone.
    torch.testing.assert_close(found[:, 0].quantile(0.95), found[:, 1].quantile(0.95), rtol=0.3, atol=0)
    assert torch.equal(found[:, 3], torch.zeros(400))
    assert calibrated.device is not None and calibrated.device.passes["calibration"] == 400 + 4 * 32


def test_rows_are_counted_for_what_they_are_sent_and_a_shape_costs_nothing() -> None:
    one = front(skip=True)
    net = nn.Sequential(one, nn.Linear(7, 3), PhysicalFront(one.device, one.drive, 3, False))
    with asking(net, "eval"), torch.no_grad():
        net(ROWS.detach())
    with asking(net, "shape"):
        assert net(ROWS).shape == (2, 4)
    one(ROWS)
    assert passes(net) == {"train": 2, "eval": 4, "calibration": 0, "other": 0}
    assert apparatus(net) == [one.device]


def test_a_device_is_no_part_of_the_state_of_a_network() -> None:
    net = physical_net([Device(AcousticCavity())] * 2, (5,), 3, [4], "l2")
    assert set(net.state_dict()) == {
        f"{k}.{name}" for k, names in ((1, ("offset", "scale")), (2, ("weight", "bias")),
                                       (3, ("offset", "scale")), (4, ("weight", "bias"))) for name in names
    }  # fmt: skip


def test_without_a_device_the_rows_are_the_features() -> None:
    assert torch.equal(PhysicalFront(None, Drive(3, (0, 1)), 3, True)(ROWS), ROWS)
    bare = PhysicalFront(None, Drive(3, (0, 1)), 3, False, "l2")
    torch.testing.assert_close(bare(ROWS).norm(dim=1), torch.full((2,), 3**0.5))
    assert passes(bare) == {}


@pytest.mark.parametrize(
    ("options", "name"),
    [({"hidden": []}, "hidden"), ({"drive": "nothing"}, "drive"), ({"drive": ["l2"]}, "drive")],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], name: str) -> None:
    given = {"hidden": [4], "drive": "l2", **options}
    with pytest.raises(BadValue, match=name):
        physical_net([Device(AcousticCavity())] * 2, (5,), 3, **given)


# ---- twins -----------------------------------------------------------------------------------------------


def with_twin(mismatch: float, forward: Any) -> tuple[TwinFront, AcousticCavity]:
    system = AcousticCavity(noise=0.0, dtype=torch.float64)
    device = Device(system)
    made = PhysicalFront(device, UnitNorm(20, device.input_range), 20, False).double()
    return TwinFront(made, system.differentiable_twin(mismatch), forward).train(), system


def test_an_exact_twin_gives_the_gradient_of_the_device_by_differences() -> None:
    layer, _ = with_twin(0.0, "device")
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(3, 20, dtype=torch.float64, generator=generator) + 0.1
    weight = torch.randn(3, 20, dtype=torch.float64, generator=generator)
    rows.requires_grad_()
    (gradient,) = torch.autograd.grad((layer(rows) * weight).sum(), rows)
    rows = rows.detach()
    for i, j in ((0, 0), (1, 7), (2, 19)):
        step = torch.zeros_like(rows)
        step[i, j] = 1e-6
        slope = ((layer.front(rows + step) - layer.front(rows - step)) * weight).sum() / 2e-6
        assert gradient[i, j].item() == pytest.approx(slope.item(), rel=1e-5)


def test_the_device_answers_forwards_and_the_wrong_twin_backwards_at_the_measured_input() -> None:
    layer, _ = with_twin(0.5, "device")
    rows = (torch.rand(3, 20, dtype=torch.float64) + 0.1).requires_grad_()
    answer = layer(rows)
    assert torch.equal(answer.detach(), layer.front(rows.detach()))
    drives = layer.front.drive(rows)
    assert layer.twin is not None
    expected = torch.autograd.grad(layer.twin(drives).sum(), rows)[0]
    torch.testing.assert_close(torch.autograd.grad(answer.sum(), rows)[0], expected)


def test_in_simulation_the_device_is_asked_only_when_the_network_is_used() -> None:
    layer, _ = with_twin(0.5, "twin")
    rows = torch.rand(3, 20, dtype=torch.float64)
    learned_on = layer(rows)
    assert passes(layer)["train"] == 0
    used = layer.eval()(rows)
    assert passes(layer)["train"] == 3
    assert not torch.allclose(learned_on, used, rtol=1e-2)
