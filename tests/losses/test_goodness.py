"""Goodness against the formulas of Hinton (arXiv 2212.13345) and SymBa (2303.08418)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bpfree import BadValue, Block
from bpfree.losses import Goodness
from bpfree.nn import StraightThroughReLU

ROWS, WIDTH = 6, 5


def activities(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64).relu()


def built(width: int = WIDTH, **settings: Any) -> Goodness:
    loss = Goodness(**settings)
    loss.build(torch.zeros(2, width), 3)
    return loss


TARGET = torch.tensor([1, 1, 1, 0, 0, 0])


@pytest.mark.parametrize("form", ["sum", "mean"])
def test_logistic_loss_is_the_formula(form: Any) -> None:
    z = activities()
    theta = {"sum": float(WIDTH), "mean": 2.0}[form]
    total = 0.0
    for row, positive in zip(z.tolist(), TARGET.tolist(), strict=True):
        goodness = sum(v * v for v in row) / (1 if form == "sum" else WIDTH)
        p = 1 / (1 + math.exp(-(goodness - theta)))
        total -= math.log(p if positive else 1 - p)
    assert built(goodness=form)(z, TARGET).item() == pytest.approx(total / ROWS, rel=1e-12)


def test_symmetric_loss_is_the_formula() -> None:
    z, alpha = activities(), 1.5
    goodness = [sum(v * v for v in row) for row in z.tolist()]
    pairs = [math.log1p(math.exp(-alpha * (goodness[i] - goodness[i + 3]))) for i in range(3)]
    value = built(objective="symmetric", alpha=alpha)(z, TARGET).item()
    assert value == pytest.approx(sum(pairs) / 3, rel=1e-12)


def test_the_peer_term_is_the_formula_with_a_running_mean() -> None:
    z, momentum, weight = activities(), 0.9, 0.03
    loss, plain = built(peer_weight=weight, peer_momentum=momentum), built()
    mean = [0.5] * WIDTH
    for _ in range(3):
        batch_mean = [sum(z[i, j].item() for i in range(3)) / 3 for j in range(WIDTH)]
        mean = [momentum * m + (1 - momentum) * v for m, v in zip(mean, batch_mean, strict=True)]
        center = sum(mean) / WIDTH
        peer = sum((center - m) ** 2 for m in mean) / WIDTH
        assert (loss(z, TARGET) - plain(z, TARGET)).item() == pytest.approx(weight * peer, rel=1e-6)
        torch.testing.assert_close(loss.mean_activity, torch.tensor(mean), rtol=1e-6, atol=1e-7)


def test_the_peer_gradient_passes_through_the_mean_of_this_batch_only() -> None:
    z = activities().requires_grad_()
    loss, plain = built(peer_weight=1.0), built()
    (gradient,) = torch.autograd.grad(loss(z, TARGET) - plain(z, TARGET), z)
    # d/dz_ij of mean_i (mean_j m - m_i)^2 through m = 0.9 * 0.5 + 0.1 * mean over positive rows.
    m = 0.45 + 0.1 * z.detach()[:3].mean(0)
    expected = torch.zeros_like(z)
    expected[:3] = 2 * (m - m.mean()) / WIDTH * 0.1 / 3
    torch.testing.assert_close(gradient, expected)


def test_evaluation_does_not_change_the_running_mean() -> None:
    loss = built(peer_weight=0.03).eval()
    loss(activities(), TARGET)
    assert torch.equal(loss.mean_activity, torch.full((WIDTH,), 0.5))


def test_the_running_mean_is_a_saved_buffer() -> None:
    loss = built(peer_weight=0.03)
    loss(activities(), TARGET)
    other = built(peer_weight=0.03)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other.mean_activity, loss.mean_activity)
    assert not torch.equal(other.mean_activity, torch.full((WIDTH,), 0.5))
    assert loss.to(torch.float64).mean_activity.dtype == torch.float64
    assert loss.to("meta").mean_activity.device.type == "meta"


@pytest.mark.parametrize(("form", "expected"), [("sum", 7.0), ("mean", 2.0)])
def test_the_default_threshold_depends_on_the_form_of_the_goodness(form: Any, expected: float) -> None:
    assert built(7, goodness=form).threshold == expected
    assert built(7, goodness=form, threshold=3.5).threshold == 3.5


def test_scores_are_goodness_minus_the_threshold() -> None:
    z = activities()
    expected = torch.tensor([[sum(v * v for v in row) - WIDTH] for row in z.tolist()], dtype=torch.float64)
    torch.testing.assert_close(built().scores(z), expected)


def test_the_goodness_of_maps_is_that_of_the_flattened_maps() -> None:
    maps = torch.randn(4, 2, 3, 3)
    torch.testing.assert_close(Goodness().goodness(maps), maps.pow(2).sum((1, 2, 3)))
    torch.testing.assert_close(Goodness("mean").goodness(maps), maps.pow(2).mean((1, 2, 3)))


@pytest.mark.parametrize("objective", ["threshold", "symmetric"])
@pytest.mark.parametrize("form", ["sum", "mean"])
def test_the_gradient_of_a_layer_equals_finite_differences(form: Any, objective: Any) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(4, WIDTH).double()
    loss = built(goodness=form, objective=objective, peer_weight=0.3).double().eval()
    block = Block(nn.Sequential(linear, nn.ReLU()), loss)
    rows = torch.randn(ROWS, 4, dtype=torch.float64)

    def value() -> float:
        return block.objective(rows, TARGET, None)[0][0].item()

    block.objective(rows, TARGET, None)[0][0].backward()  # type: ignore[no-untyped-call]
    step = 1e-6
    for parameter in linear.parameters():
        assert parameter.grad is not None
        for i in range(parameter.numel()):
            flat = parameter.data.view(-1)
            flat[i] += step
            above = value()
            flat[i] -= 2 * step
            below = value()
            flat[i] += step
            assert parameter.grad.view(-1)[i].item() == pytest.approx((above - below) / (2 * step), abs=1e-7)


def gradient(relu: nn.Module, peer_weight: float) -> Tensor:
    torch.manual_seed(0)
    linear = nn.Linear(4, WIDTH)
    with torch.no_grad():
        linear.bias[2] = -100.0  # the unit is 0 for every row
    loss = built(peer_weight=peer_weight)
    loss(relu(linear(torch.rand(ROWS, 4))), TARGET).backward()
    assert linear.weight.grad is not None
    return linear.weight.grad


def test_straight_through_equals_relu_without_the_peer_term() -> None:
    assert torch.equal(gradient(StraightThroughReLU(), 0.0), gradient(nn.ReLU(), 0.0))


def test_straight_through_gives_a_dead_unit_a_gradient_of_the_peer_term() -> None:
    plain, straight = gradient(nn.ReLU(), 0.03), gradient(StraightThroughReLU(), 0.03)
    assert not plain[2].any()
    assert straight[2].any()
    # Its activity is below the mean: gradient descent must increase it for positive rows.
    assert (straight[2] <= 0).all()


@pytest.mark.parametrize("settings", [{"goodness": "squares"}, {"objective": "hinge"}])
def test_unknown_forms_are_refused(settings: Any) -> None:
    with pytest.raises(BadValue, match="|".join(settings)):
        Goodness(**settings)


@pytest.mark.parametrize("form", ["sum", "mean"])
def test_a_bfloat16_output_is_summed_in_float32(form: Any) -> None:
    torch.manual_seed(0)
    output = (torch.rand(5, 1000) + 0.5).bfloat16()
    loss = Goodness(form)
    loss.build(output, 3)
    squares = output.double().square()
    expected = squares.sum(1) if form == "sum" else squares.mean(1)
    # The steps of bfloat16 at a sum of about 1000 are 4: a relative error of up to 2e-3.
    torch.testing.assert_close(loss.goodness(output).double(), expected, rtol=1e-5, atol=0)
