"""`ClosedForm`: the sums, the choice of the penalty, and the solution."""

from __future__ import annotations

import pytest
import torch

from bpfree import BadValue, RidgeAccumulator
from bpfree.losses import ClosedForm

G = torch.Generator().manual_seed(0)
OUTPUT, LABELS = torch.randn(60, 3, 4, 4, generator=G), torch.randint(3, (60,), generator=G)


def accumulated(**options: object) -> ClosedForm:
    loss = ClosedForm(**options)  # type: ignore[arg-type]
    loss.build(OUTPUT, 3)
    loss.begin()
    for indices in torch.arange(60).split(25):
        loss.accumulate(OUTPUT[indices], LABELS[indices])
    return loss


def test_solve_computes_the_ridge_solution() -> None:
    loss = accumulated(lam=[0.05])
    assert not loss.scores(OUTPUT).any()
    loss.solve(None)
    weight, bias = RidgeAccumulator(48, 3).add(OUTPUT.flatten(1), LABELS).solve(0.05)
    torch.testing.assert_close(loss.scores(OUTPUT), (OUTPUT.flatten(1).double() @ weight + bias).float())
    assert loss.accumulator is None


def test_the_loss_is_the_mean_squared_error_before_the_step() -> None:
    loss = accumulated(lam=[0.05])
    value = loss(OUTPUT, LABELS)
    assert value.item() == pytest.approx(1 / 3)
    loss.solve(None)
    scores = loss.scores(OUTPUT)
    assert loss(OUTPUT, LABELS).item() == pytest.approx(
        (scores - torch.eye(3)[LABELS]).square().mean().item()
    )


def test_the_penalty_with_the_best_validation_accuracy_is_chosen() -> None:
    lams = [1e-6, 1e-3, 1.0, 100.0]
    generator = torch.Generator().manual_seed(1)
    outputs, labels = (
        torch.randn(200, 3, 4, 4, generator=generator),
        torch.randint(3, (200,), generator=generator),
    )
    correct = {}
    for lam in lams:
        loss = accumulated(lam=[lam])
        loss.solve(None)
        correct[lam] = int((loss.scores(outputs).argmax(1) == labels).sum())
    best = max(sorted(lams, reverse=True), key=lambda lam: correct[lam])
    assert len(set(correct.values())) > 1
    loss = accumulated(lam=lams)
    loss.solve([(outputs[:90], labels[:90]), (outputs[90:], labels[90:])])
    assert loss.chosen == best
    tie = accumulated(lam=[1e-9, 1e-8])
    tie.solve([(outputs, labels)])
    assert tie.chosen == 1e-8
    middle = accumulated(lam=[1e-6, 1e-3, 1.0])
    middle.solve(None)
    assert middle.chosen == 1e-3


def test_samples_can_be_removed_from_the_sums() -> None:
    loss = accumulated(lam=[0.1], keep=True, bias=False)
    loss.solve(None)
    assert loss.accumulator is not None
    weight = loss.accumulator.forget(OUTPUT[:5].flatten(1), LABELS[:5]).solve(0.1)[0]
    expected = RidgeAccumulator(48, 3, intercept=False).add(OUTPUT[5:].flatten(1), LABELS[5:]).solve(0.1)[0]
    torch.testing.assert_close(weight, expected, rtol=1e-8, atol=1e-8)
    loss.begin()
    loss.accumulate(OUTPUT, LABELS)
    assert loss.accumulator.count == 60


def test_pooling_reduces_the_features() -> None:
    loss = accumulated(lam=[0.1], pool=2)
    loss.solve(None)
    assert loss.linear.in_features == 12
    pooled = OUTPUT.view(60, 3, 2, 2, 2, 2).square().mean((3, 5)).sqrt().flatten(1)
    weight, bias = RidgeAccumulator(12, 3).add(pooled, LABELS).solve(0.1)
    torch.testing.assert_close(loss.scores(OUTPUT), (pooled.double() @ weight + bias).float())


def test_missing_and_negative_penalties_are_refused() -> None:
    for lam in ([], [-1.0, 0.1]):
        with pytest.raises(BadValue, match="at least 0"):
            ClosedForm(lam)
