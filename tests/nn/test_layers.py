"""Small layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bpfree.nn import LengthNorm, RowNorm, StraightThroughReLU, at_least_float32


@pytest.mark.parametrize("shape", [(6, 9), (6, 2, 3, 3)])
def test_row_norm_matches_its_formula_for_each_row(shape: tuple[int, ...]) -> None:
    rows = torch.rand(shape, dtype=torch.float64) * 3 - 1
    for row, result in zip(rows, RowNorm()(rows), strict=True):
        deviation = (row - row.mean()).square().mean().sqrt()
        torch.testing.assert_close(result, (row - row.mean()) / (deviation.square() + 1e-5).sqrt())


def test_norms_convert_narrow_dtypes_to_float32() -> None:
    rows = torch.rand(4, 1000)
    for norm in (LengthNorm(), RowNorm()):
        low = norm(rows.bfloat16())
        assert low.dtype == torch.float32
        assert torch.equal(low, norm(rows.bfloat16().float()))
    assert at_least_float32(rows.double()).dtype == torch.float64


@pytest.mark.parametrize("shape", [(6, 9), (6, 2, 3, 3)])
def test_every_row_has_root_mean_square_one(shape: tuple[int, ...]) -> None:
    rows = torch.rand(shape) * torch.logspace(-2, 3, 6).view(-1, *[1] * (len(shape) - 1))
    out = LengthNorm()(rows)
    assert out.shape == rows.shape
    torch.testing.assert_close(out.flatten(1).square().mean(1), torch.ones(6))


def test_length_norm_removes_the_length_and_keeps_the_direction() -> None:
    rows = torch.rand(5, 8)
    norm = LengthNorm()
    torch.testing.assert_close(norm(rows * 37.0), norm(rows))
    cosine = nn.functional.cosine_similarity(norm(rows), rows)
    torch.testing.assert_close(cosine, torch.ones(5))


def test_rows_are_independent_and_zeros_stay_zeros() -> None:
    rows = torch.rand(3, 8)
    rows[1] = 0
    out = LengthNorm()(rows)
    assert torch.equal(out[1], torch.zeros(8))
    assert torch.equal(out[2:], LengthNorm()(rows[2:]))


def test_straight_through_is_relu_forward_and_identity_backward() -> None:
    x = torch.tensor([-2.0, -0.0, 0.5, 3.0], requires_grad=True)
    out = StraightThroughReLU()(x)
    assert torch.equal(out, torch.tensor([0.0, 0.0, 0.5, 3.0]))
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    (out * weights).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, weights)
