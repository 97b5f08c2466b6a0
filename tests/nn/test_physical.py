"""Networks with physical devices: features, normalization, counting of passes, digital models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bpfree import BadValue
from bpfree.nn import PhysicalFront, counting_passes, inferring_shapes, passes, physical_devices, physical_net
from bpfree.nn.digital_model import DigitalModelFront
from bpfree.nn.drives import Drive, UnitNorm
from bpfree.physics import AcousticCavity, Device


class Square:
    """Squares its drive, with a gain and an offset for each output."""

    n_in, n_out, input_range = 4, 4, (-10.0, 10.0)
    gain = np.array([1.0, 2.0, 3.0, 0.0])

    def forward(self, u: Any) -> Any:
        return (self.gain * (u**2) + 5).astype(u.dtype)


def front(**options: Any) -> PhysicalFront:
    device = Device(Square())
    return PhysicalFront(device, Drive(4, device.input_range), 3, **{"skip": True, **options})


ROWS = torch.tensor([[1.0, -2.0, 3.0], [0.5, 0.0, 1.0]])


def test_features_are_the_output_and_the_inputs() -> None:
    output = torch.tensor([[6.0, 13.0, 32.0, 5.0], [5.25, 5.0, 8.0, 5.0]])
    assert torch.equal(front()(ROWS), torch.cat([output, ROWS], 1))
    assert torch.equal(front(skip=False)(ROWS), output)
    assert front().out_features == 7 and front(skip=False).out_features == 4


def test_normalizations() -> None:
    output = front(skip=False)(ROWS)
    l2 = front(skip=False, normalize="l2")(ROWS)
    torch.testing.assert_close(l2, 2 * output / output.norm(dim=1, keepdim=True))
    by_row = front(skip=False, normalize="standardize")(ROWS)
    torch.testing.assert_close(by_row.mean(1), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(by_row.square().mean(1), torch.ones(2))


def test_calibration_centers_and_scales_each_output_and_sets_a_constant_one_to_zero() -> None:
    calibrated = front(skip=False, normalize="calibrated")
    rows = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match=r"1 of 4 outputs \(3\) never changed"):
        calibrated.calibrate(rows)
    result = calibrated(rows)
    assert result.quantile(0.5, dim=0).abs().max() < 1e-5
    # The gains are removed.
    torch.testing.assert_close(result[:, 0].quantile(0.95), result[:, 1].quantile(0.95), rtol=0.3, atol=0)
    assert torch.equal(result[:, 3], torch.zeros(400))
    assert (
        calibrated.physical_device is not None
        and calibrated.physical_device.passes["calibration"] == 400 + 4 * 32
    )


def test_passes_are_counted_by_purpose_and_shape_inference_sends_no_rows() -> None:
    one = front(skip=True)
    net = nn.Sequential(one, nn.Linear(7, 3), PhysicalFront(one.physical_device, one.drive, 3, False))
    with counting_passes(net, "eval"), torch.no_grad():
        net(ROWS.detach())
    with inferring_shapes(net):
        assert net(ROWS).shape == (2, 4)
    one(ROWS)
    assert passes(net) == {"train": 2, "eval": 4, "calibration": 0, "other": 0}
    assert physical_devices(net) == [one.physical_device]


def test_a_device_is_not_part_of_the_state_dict() -> None:
    net = physical_net([Device(AcousticCavity())] * 2, (5,), 3, [4], "l2")
    assert set(net.state_dict()) == {
        f"{k}.{name}" for k, names in ((1, ("offset", "scale")), (2, ("weight", "bias")),
                                       (3, ("offset", "scale")), (4, ("weight", "bias"))) for name in names
    }  # fmt: skip


def test_without_a_device_the_inputs_are_the_features() -> None:
    assert torch.equal(PhysicalFront(None, Drive(3, (0, 1)), 3, True)(ROWS), ROWS)
    bare = PhysicalFront(None, Drive(3, (0, 1)), 3, False, "l2")
    torch.testing.assert_close(bare(ROWS).norm(dim=1), torch.full((2,), 3**0.5))
    assert passes(bare) == {}


@pytest.mark.parametrize(
    ("options", "name"),
    [({"hidden": []}, "hidden"), ({"drive": "nothing"}, "drive"), ({"drive": ["l2"]}, "drive")],
)
def test_invalid_arguments_are_refused(options: dict[str, Any], name: str) -> None:
    given = {"hidden": [4], "drive": "l2", **options}
    with pytest.raises(BadValue, match=name):
        physical_net([Device(AcousticCavity())] * 2, (5,), 3, **given)


# ---- digital models
# -----------------------------------------------------------------------------------------------


def with_model(mismatch: float, forward: Any) -> tuple[DigitalModelFront, AcousticCavity]:
    system = AcousticCavity(noise=0.0, dtype=torch.float64)
    device = Device(system)
    inner = PhysicalFront(device, UnitNorm(20, device.input_range), 20, False).double()
    return DigitalModelFront(inner, system.digital_model(mismatch), forward).train(), system


def test_an_exact_digital_model_has_the_gradient_of_finite_differences_of_the_device() -> None:
    layer, _ = with_model(0.0, "device")
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


def test_forward_is_the_device_and_backward_the_digital_model_at_the_measured_drives() -> None:
    layer, _ = with_model(0.5, "device")
    rows = (torch.rand(3, 20, dtype=torch.float64) + 0.1).requires_grad_()
    output = layer(rows)
    assert torch.equal(output.detach(), layer.front(rows.detach()))
    drives = layer.front.drive(rows)
    assert layer.digital_model is not None
    expected = torch.autograd.grad(layer.digital_model(drives).sum(), rows)[0]
    torch.testing.assert_close(torch.autograd.grad(output.sum(), rows)[0], expected)


def test_in_silico_training_uses_the_device_in_evaluation_only() -> None:
    layer, _ = with_model(0.5, "digital_model")
    rows = torch.rand(3, 20, dtype=torch.float64)
    learned_on = layer(rows)
    assert passes(layer)["train"] == 0
    used = layer.eval()(rows)
    assert passes(layer)["train"] == 3
    assert not torch.allclose(learned_on, used, rtol=1e-2)
