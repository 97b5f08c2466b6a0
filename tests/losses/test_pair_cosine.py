"""The pair loss on the cosine with a fixed direction: its closed form, its bound, its pairs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bpfree import BadValue
from bpfree.losses import PairCosine

CLASSES, WIDTH = 5, 12


def made(dtype: torch.dtype = torch.float64, **options: Any) -> PairCosine:
    loss = PairCosine(**options)
    loss.build(torch.zeros(1, WIDTH, dtype=dtype), CLASSES)
    return loss


def outputs(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("reference", ["gaussian", "rademacher"])
@pytest.mark.parametrize("negatives", [1, None])
@pytest.mark.parametrize("scale", [1.0, 1e-7, 1e6])
def test_the_closed_form_is_the_gradient(reference: Any, negatives: int | None, scale: float) -> None:
    loss = made(reference=reference, negatives=negatives, theta=5.0)
    views = 2 if negatives == 1 else CLASSES
    z = (outputs(6 * views) * scale).requires_grad_()
    value = loss(z, torch.zeros(6 * views))
    (expected,) = torch.autograd.grad(value, z)
    found, gradient, _ = loss.closed_form(z.detach(), torch.zeros(6 * views))
    assert found.item() == pytest.approx(value.item(), rel=1e-12)
    assert ((gradient - expected).abs().max() / expected.abs().max()).item() < 1e-10


def test_the_closed_form_is_finite_at_zero() -> None:
    value, gradient, _ = made().closed_form(torch.zeros(4, WIDTH, dtype=torch.float64), torch.zeros(4))
    assert value.item() == pytest.approx(math.log(2))
    assert gradient.isfinite().all()


def test_every_negative_stands_against_its_own_positive() -> None:
    loss, z = made(negatives=None, theta=3.0), outputs(3 * CLASSES)
    g = loss.goodness(z).tolist()
    pairs = [g[i] - g[3 * k + i] for k in range(1, CLASSES) for i in range(3)]
    by_hand = sum(math.log1p(math.exp(-3.0 * margin)) for margin in pairs) / len(pairs)
    assert loss(z, torch.zeros(len(z))).item() == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("reference", ["gaussian", "rademacher"])
def test_goodness_stays_inside_its_bound_and_reaches_it(reference: Any) -> None:
    loss = made(reference=reference)
    low, high = -loss.xi.clamp(max=0).norm(), loss.xi.clamp(min=0).norm()
    g = loss.goodness(outputs(2000))
    assert g.min() >= low and g.max() <= high
    extremes = loss.goodness(torch.stack([-loss.xi.clamp(max=0), loss.xi.clamp(min=0)]))
    torch.testing.assert_close(extremes, torch.stack([low, high]))


def test_the_direction_is_of_unit_length_and_each_block_has_its_own() -> None:
    directions = [made(seed=seed, number=number).xi for seed, number in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert all(xi.norm().item() == pytest.approx(1.0) for xi in directions)
    assert torch.equal(directions[0], directions[3])
    assert not torch.equal(directions[0], directions[1]) and not torch.equal(directions[0], directions[2])
    assert made(reference="rademacher").xi.abs().unique().numel() == 1


@pytest.mark.parametrize(("option", "value"), [("theta", 0.0), ("reference", "uniform")])
def test_bad_options_are_refused(option: str, value: Any) -> None:
    with pytest.raises(BadValue, match=option):
        PairCosine(**{option: value})
