"""Sparsemax against a projection by bisection, and its loss against autograd and the formula of the paper."""

from __future__ import annotations

import torch

from bpfree.losses import LocalSparsemax, make_loss, sparsemax

SCORES = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
LABELS = torch.arange(50) % 6


def tau_by_bisection(row: torch.Tensor) -> float:
    low, high = row.max().item() - 1, row.max().item()
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if (row - middle).clamp(min=0).sum() > 1 else (low, middle)
    return low


def built() -> LocalSparsemax:
    loss = LocalSparsemax()
    loss.build(torch.zeros(2, 4, dtype=torch.float64), 6)
    return loss


def test_sparsemax_is_the_projection_onto_the_simplex() -> None:
    p = sparsemax(SCORES)
    expected = torch.stack([(row - tau_by_bisection(row)).clamp(min=0) for row in SCORES])
    torch.testing.assert_close(p, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(p.sum(1), torch.ones(50, dtype=torch.float64))
    assert (p == 0).any()


def test_the_loss_is_the_formula_and_its_gradient_probabilities_minus_target() -> None:
    scores = SCORES.clone().requires_grad_()
    loss = built().objective(scores, LABELS)
    rows = []
    for row, label in zip(SCORES, LABELS, strict=True):
        tau = tau_by_bisection(row)
        support = row[row > tau]
        rows.append(-row[label] + 0.5 * (support.square() - tau**2).sum() + 0.5)
    assert min(rows) >= 0
    torch.testing.assert_close(loss, torch.stack(rows).mean())
    loss.backward()
    one_hot = torch.eye(6, dtype=torch.float64)[LABELS]
    torch.testing.assert_close(scores.grad, (sparsemax(SCORES) - one_hot) / 50)


def test_the_loss_is_0_for_a_margin_of_1() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.5], [0.0, 3.0, -1.0]])
    assert built().objective(scores, torch.tensor([0, 1])).item() == 0
    assert isinstance(make_loss("sparsemax"), LocalSparsemax)


def test_the_closed_form_equals_autograd() -> None:
    loss = built().double()
    output = torch.randn(
        50, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ).requires_grad_()
    value = loss(output, LABELS)
    value.backward()
    (weight,) = loss.parameters()
    expected = weight.grad
    with torch.no_grad():
        result, error, gradients = loss.closed_form(output, LABELS)
    torch.testing.assert_close(result, value)
    torch.testing.assert_close(error, output.grad)
    torch.testing.assert_close(gradients[weight], expected)
