"""The judge tells right from wrong, a refusal from a crash, and a late error from an early one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bpfree
from benchmarks.robustness import _by_hand as hand
from benchmarks.robustness import _nets as nets
from benchmarks.robustness._case import REFUSED, RIGHT, Case, Outcome
from benchmarks.robustness._compare import as_by_hand, losses_differ, row, solves, uses_differ
from benchmarks.robustness._samples import samples
from benchmarks.robustness._verdict import Verdict, Watch, run_case, unclear_part
from bpfree.trainers import TRAINERS

PLAIN = "lr = -1.0: expected a rate above 0"


def judged(attempt: Callable[[Watch], str | None], mentions: str = "") -> Verdict:
    return run_case(Case("fake", "net", "input", RIGHT, attempt, mentions))


def stepped(net: nn.Module) -> None:
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    net(torch.rand(2, 3)).sum().backward()
    optimizer.step()


# ---- one outcome each ------------------------------------------------------------------------------------


def test_nothing_wrong_is_right() -> None:
    assert judged(lambda watch: None).outcome is Outcome.RIGHT


def test_a_fault_is_wrong() -> None:
    found = judged(lambda watch: "predict differs")
    assert (found.outcome, found.reason, found.passed) == (Outcome.WRONG, "predict differs", False)


def test_a_foreign_error_is_raw() -> None:
    def attempt(watch: Watch) -> None:
        torch.ones(2) @ torch.ones(3)

    assert judged(attempt).outcome is Outcome.RAW


def test_pythons_own_type_error_is_raw() -> None:
    def attempt(watch: Watch) -> None:
        raise TypeError("expected 2 tensors, got 1")

    assert judged(attempt).outcome is Outcome.RAW


def test_a_plain_refusal_is_one() -> None:
    def attempt(watch: Watch) -> None:
        raise bpfree.BadValue(PLAIN)

    found = run_case(Case("fake", "net", "input", REFUSED, attempt))
    assert (found.outcome, found.reason, found.passed) == (Outcome.REFUSED, PLAIN, True)


def test_a_refusal_after_a_step_is_none() -> None:
    def attempt(watch: Watch) -> None:
        stepped(nn.Linear(3, 1))
        raise bpfree.BadValue(PLAIN)

    found = judged(attempt)
    assert found.outcome is Outcome.RAW and "after 1 steps" in found.reason


def test_a_refusal_that_leaves_other_weights_is_wrong() -> None:
    def attempt(watch: Watch) -> None:
        net = nn.Linear(3, 1)
        watch.protect(net)
        nn.init.ones_(net.weight)
        raise bpfree.BadValue(PLAIN)

    found = judged(attempt)
    assert found.outcome is Outcome.WRONG and "weight of the network has changed" in found.reason


def test_what_is_used_after_training_may_be_refused() -> None:
    def attempt(watch: Watch) -> None:
        net = nn.Linear(3, 1)
        watch.protect(net)
        stepped(net)
        watch.end_training(net)
        raise bpfree.BadValue(PLAIN)

    assert judged(attempt).outcome is Outcome.REFUSED


def test_a_refusal_must_name_what_the_case_is_about() -> None:
    def attempt(watch: Watch) -> None:
        raise bpfree.BadValue(PLAIN)

    assert judged(attempt, mentions="lr").outcome is Outcome.REFUSED
    assert judged(attempt, mentions="epochs").outcome is Outcome.RAW


def warn(*messages: str) -> Callable[[Watch], str | None]:
    def attempt(watch: Watch) -> None:
        for message in messages:
            warnings.warn(message, stacklevel=1)

    return attempt


def test_one_warning_is_one_and_two_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.robustness._verdict._ours", lambda warning: True)
    assert judged(warn(PLAIN)).outcome is Outcome.WARNED
    assert judged(warn(PLAIN, PLAIN)).outcome is Outcome.WRONG


def test_a_warning_of_another_library_is_raw() -> None:
    assert judged(warn(PLAIN)).outcome is Outcome.RAW


def test_a_warning_does_not_make_a_false_result_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.robustness._verdict._ours", lambda warning: True)

    def attempt(watch: Watch) -> str:
        warnings.warn(PLAIN, stacklevel=1)
        return "predict differs"

    assert judged(attempt).outcome is Outcome.WRONG


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        (PLAIN, None),
        ("the trainer has not seen its data yet: call fit first", None),
        ("mat1 and mat2 shapes cannot be multiplied (2x7 and 12x16)", "is PyTorch's own"),
        ("x = 3: expected 4\nTraceback", "is more than one line"),
        ("that cannot be: use another", "names no value"),
        ("x = 3 is bad", "names no fix"),
        ("x = 3: expected 4" * 40, "has 680 characters"),
    ],
)
def test_what_a_message_lacks(message: str, fault: str | None) -> None:
    assert unclear_part(message) == fault


# ---- trainers that are wrong are found out ---------------------------------------------------------------


class Shuffles(bpfree.MonoForward):
    """Predicts of other samples than it is asked about."""

    id = "shuffles"

    def predict(self, x: Tensor) -> Tensor:
        return super().predict(x.flip(0))


class Forgets(bpfree.MonoForward):
    """Trains on the first half of each batch alone."""

    id = "forgets"

    def fit(self, train: Any, validation: Any = None, **options: Any) -> bpfree.History:
        half = len(train) // 2 + 1
        return super().fit(train.take(torch.arange(half)), validation, **options)


class Boasts(bpfree.MonoForward):
    """Says that all is right."""

    id = "boasts"

    def evaluate(self, data: Any) -> dict[str, Any]:
        return super().evaluate(data) | {"accuracy": 1.0}


@pytest.mark.parametrize(("kind", "reason"), [(Shuffles, "predict"), (Forgets, "loss"), (Boasts, "evaluate")])
def test_a_trainer_that_is_wrong_is_judged_wrong(
    kind: type[bpfree.MonoForward], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TRAINERS, kind.id, kind)

    def attempt(watch: Watch) -> str | None:
        s = samples(12, noise=3.0)
        return as_by_hand(watch, kind.id, nets.mlp, s.data, s, loop="mono_forward")

    found = judged(attempt)
    assert found.outcome is Outcome.WRONG and reason in found.reason


def test_chance_on_an_easy_problem_is_judged_wrong() -> None:
    s = samples(12)
    found = judged(
        lambda watch: solves(watch, "mono_forward", row(nets.mlp()), s.data, s, lr=1e-9, fit={"epochs": 1})
    )
    assert found.outcome is Outcome.WRONG and "easy problem" in found.reason


# ---- the loops by hand -----------------------------------------------------------------------------------


def test_least_squares_by_hand_are_the_minimum() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y, lam = torch.rand(30, 5, generator=draw), torch.arange(30) % 3, 0.1
    weight, bias = hand.ridge(x, y, 3, lam)
    weight.requires_grad_()
    bias.requires_grad_()
    error = (x.double() @ weight + bias - nn.functional.one_hot(y, 3)).square().sum()
    penalty = lam * x.double().square().sum() / 5 * weight.square().sum()
    gradients = torch.autograd.grad(error + penalty, [weight, bias])
    assert max(g.abs().max() for g in gradients) < 1e-9


@pytest.mark.parametrize("trainer", sorted(hand.LOOPS))
def test_a_loop_is_another_one_with_another_rate(trainer: str) -> None:
    # A comparison that every rate passed would show nothing.
    s = samples(12, noise=1.0)
    made = TRAINERS[trainer](row(nets.mlp()), lr=0.02, progress=False)
    watch = Watch()
    watch.follow(lambda: made.cascade)
    with watch.counting():
        history = made.fit(s.data, epochs=5, batch_size=48)
    loop = hand.LOOPS[trainer]
    same, other = (loop(nets.mlp(), watch.first, s.x, s.y, 5, lr) for lr in (0.02, 0.1))
    assert losses_differ(history, same) is None and uses_differ(made, same.scores, s.data, s) is None
    differs = losses_differ(history, other) if other.losses else uses_differ(made, other.scores, s.data, s)
    assert differs is not None
