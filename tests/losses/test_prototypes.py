"""Class prototypes, the feedback of their losses, and ridge regression in dual form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from bpfree import BadValue, RidgeAccumulator
from bpfree.losses import (
    ClassPrototypes,
    ClosedForm,
    DualRidge,
    PrototypeGoodness,
    TopToInput,
    TopToLoss,
    dual_ridge,
)


def rows(n: int, width: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def test_the_last_rows_are_the_prototypes() -> None:
    output, target = rows(8), torch.tensor([0, 2, -1, 1, 1])
    logits = output[:5] @ output[5:].T / 0.5
    terms = [-math.log(logits[i].softmax(0)[k].item()) for i, k in ((0, 0), (1, 2), (3, 1), (4, 1))]
    loss = ClassPrototypes(3, temperature=0.5)
    assert loss(output, target).item() == pytest.approx(sum(terms) / 4)
    assert torch.equal(loss.scores(output), logits)


def test_the_cosine_does_not_depend_on_norms() -> None:
    loss, output = ClassPrototypes(3, similarity="cosine", temperature=0.1), rows(8)
    scaled = output * torch.linspace(0.5, 3, 8).unsqueeze(1)
    torch.testing.assert_close(loss.scores(output), loss.scores(scaled))
    assert loss.scores(output).abs().max() <= 10.0


def test_unlabeled_rows_have_no_gradient() -> None:
    output = rows(8).requires_grad_()
    (gradient,) = torch.autograd.grad(ClassPrototypes(3)(output, torch.tensor([0, 2, -1, 1, 1])), output)
    assert (gradient.abs().sum(1) > 0).tolist() == [True, True, False, True, True, True, True, True]


def test_learnable_prototypes_are_parameters() -> None:
    loss, output = ClassPrototypes(3, learnable=True), rows(5).float()
    loss.build(output, 3)
    torch.testing.assert_close(loss.scores(output), output @ loss.prototypes.T)
    loss(output, torch.tensor([0, 1, 2, 0, 1])).backward()
    assert loss.prototypes.grad is not None


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(BadValue, match="temperature = 0"):
        ClassPrototypes(3, temperature=0)


def test_the_loss_uses_the_mean_of_the_output_and_all_states_above() -> None:
    lower, upper = TopToLoss(2), TopToLoss(2)
    assert upper.make_feedback(None) == (None, None)
    upper.state, lower.state = rows(6, seed=1), rows(6, seed=2)
    feedback, message = upper.make_feedback(None)
    assert feedback is None and message is not None
    feedback, below = lower.make_feedback(message)
    assert feedback is not None and below is not None
    assert torch.equal(feedback, upper.state.unsqueeze(0))
    assert torch.equal(below, torch.stack([lower.state, upper.state]))
    output, target = rows(6), torch.tensor([0, 1, -1, 1])
    mean = (output + upper.state) / 2
    expected = F.cross_entropy((mean[:4] @ mean[4:].T)[[0, 1, 3]], target[[0, 1, 3]])
    torch.testing.assert_close(lower(output, target, feedback), expected)
    torch.testing.assert_close(upper.next_state(output).norm(dim=1), torch.ones(6, dtype=torch.double))


def test_the_message_is_the_state() -> None:
    loss = TopToInput(2)
    loss.state = rows(3)
    feedback, message = loss.make_feedback(torch.ones(1))
    assert feedback is not None and feedback.item() == 1.0
    assert message is loss.state


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("shape", [(9, 30), (40, 6)])
@pytest.mark.parametrize("columns", [4, 512])
def test_the_dual_solution_equals_the_primal_solution(
    intercept: bool, shape: tuple[int, int], columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dual_ridge, "COLUMNS", columns)
    features, labels = rows(*shape, seed=4), torch.arange(shape[0]) % 3
    lams = [1e-3, 1e-1, 10.0]
    expected = RidgeAccumulator(shape[1], 3, intercept).add(features, labels).solve_all(lams)
    dual = DualRidge(shape[1], 3, intercept).add(features[:4], labels[:4]).add(features[4:], labels[4:])
    for (weight, bias), (other, constant) in zip(dual.solve_all(lams), expected, strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(bias, constant, rtol=1e-7, atol=1e-9)


def test_closed_form_is_equal_with_dual_and_an_empty_dual_is_refused() -> None:
    output, target = rows(12, 20).float(), torch.arange(12) % 3
    weights = []
    for dual in (False, True):
        loss = ClosedForm([1e-2], dual=dual)
        loss.build(output, 3)
        loss.begin()
        with torch.no_grad():
            loss.accumulate(output, target)
        loss.solve(None)
        weights.append(loss.linear.weight)
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)
    with pytest.raises(BadValue, match="no samples"):
        DualRidge(3, 2).solve_all([1.0])


def goodness(output: torch.Tensor, **options: Any) -> PrototypeGoodness:
    torch.manual_seed(0)
    loss = PrototypeGoodness(**options)
    loss.build(output.float(), 3)
    return loss.double()


def test_prototype_goodness_is_the_cosine() -> None:
    output, target = rows(5) - 0.5, torch.tensor([0, 2, 1, 1, 0])
    loss = goodness(output, temperature=0.2)
    total = 0.0
    for row, y in zip(output.tolist(), target.tolist(), strict=True):
        cosines = []
        for prototype in loss.prototypes.tolist():
            dot = sum(a * b for a, b in zip(row, prototype, strict=True))
            cosines.append(dot / math.hypot(*row) / math.hypot(*prototype))
        total -= cosines[y] / 0.2 - math.log(sum(math.exp(c / 0.2) for c in cosines))
    assert loss(output, target).item() == pytest.approx(total / 5)


def test_prototype_goodness_does_not_depend_on_norms_and_rotations() -> None:
    output = rows(5) - 0.5
    loss = goodness(output)
    before = loss.scores(output)
    rotation, _ = torch.linalg.qr(rows(4, seed=3))
    scaled = output * torch.linspace(0.5, 3, 5).unsqueeze(1)
    with torch.no_grad():
        loss.prototypes.copy_(loss.prototypes @ rotation * torch.tensor([[0.1], [1.0], [7.0]]))
    torch.testing.assert_close(loss.scores(scaled @ rotation), before)
    assert before.abs().max() <= 10.0


def test_prototype_goodness_of_maps_uses_average_pooling() -> None:
    maps = rows(5, 4 * 6 * 6).view(5, 4, 6, 6)
    loss = goodness(maps, pool=2)
    averages = maps.view(5, 4, 2, 3, 2, 3).mean((3, 5)).flatten(1)
    torch.testing.assert_close(loss.scores(maps), loss.similarities(averages, loss.prototypes))
    assert goodness(maps).prototypes.shape == (3, 144)
