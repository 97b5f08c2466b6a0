"""The defaults of `LocalLoss`, and the registry of losses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
import torch
from annotated_types import Gt
from torch import Tensor, nn

from bpfree import BadValue, LocalLoss, register_loss
from bpfree.losses import (
    BlockLoss,
    ClosedFormLoss,
    FeedbackLoss,
    LocalCrossEntropy,
    OnePassLoss,
    ScoringLoss,
    StatefulFeedbackLoss,
    loss_names,
    loss_options,
    make_loss,
)


class Least(LocalLoss):
    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        return output.sum()


def test_a_loss_needs_nothing_but_forward() -> None:
    loss = Least()
    loss.build(torch.zeros(2, 3), 2)
    assert loss.scores(torch.zeros(2, 3)) is None
    assert list(loss.parameters()) == []


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("teach", "make_feedback"), ("remembered", "next_state"), ("upward", "passed_up"),
        ("blend", "combine"),
        ("output_gradient", "ClosedFormLoss"), ("begin_pass", "OnePassLoss"), ("end_pass", "solve"),
        ("one_pass", "OnePassLoss"), ("planned", "planned_parameters"),
    ],
)  # fmt: skip
def test_methods_of_the_first_release_are_refused_with_what_takes_their_place(name: str, named: str) -> None:
    with pytest.raises(BadValue, match=rf"Old\.{name} has no effect any more: use .*{named}"):
        type("Old", (Least,), {name: lambda self: None})


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("make_feedback", FeedbackLoss), ("next_state", StatefulFeedbackLoss),
        ("closed_form", ClosedFormLoss), ("accumulate", OnePassLoss), ("block_loss", BlockLoss),
        ("probabilities", ScoringLoss),
    ],
)  # fmt: skip
def test_a_method_without_its_base_class_is_refused(name: str, base: type[LocalLoss]) -> None:
    with pytest.raises(BadValue, match="add that to the bases of New"):
        type("New", (Least,), {name: lambda self: None})
    assert issubclass(type("New", (Least, base), {name: lambda self: None}), base)


def test_a_loss_without_forward_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="abstract"):
        LocalLoss()  # type: ignore[abstract]


def test_losses_are_made_by_name_new_each_time() -> None:
    assert register_loss("tests.least")(Least) is Least
    one, other = make_loss("tests.least"), make_loss("tests.least")
    assert isinstance(one, Least)
    assert one is not other
    assert "tests.least" in loss_names()
    assert loss_names() == sorted(loss_names())


def test_a_name_is_given_once_but_may_be_given_again_to_the_same_class() -> None:
    register_loss("tests.twice")(Least)
    register_loss("tests.twice")(Least)
    with pytest.raises(BadValue, match=r"'tests\.twice' exists already"):
        register_loss("tests.twice")(LocalCrossEntropy)


def test_an_unknown_name_is_an_error_that_guesses() -> None:
    with pytest.raises(BadValue, match="did you mean 'mono_forward'"):
        make_loss("mono_foward")


class Tunable(Least):
    """Has options that a configuration can spell, and one that it cannot."""

    def __init__(
        self,
        slope: Annotated[float, Gt(0)] = 1.0,
        form: Literal["round", "square"] = "round",
        head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.slope, self.form, self.head = slope, form, head


def test_a_loss_takes_those_options_that_can_be_spelled() -> None:
    register_loss("tests.tunable")(Tunable)
    loss = make_loss("tests.tunable", {"slope": 2, "form": "square"})
    assert isinstance(loss, Tunable)
    assert (loss.slope, loss.form, loss.head) == (2.0, "square", None)
    assert loss_options("tests.tunable") == ["slope", "form"]
    register_loss("tests.least")(Least)
    assert loss_options("tests.least") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slop": 1.0}, r"loss_options of 'tests\.tunable'\.slop: unknown key; did you mean 'slope'"),
        ({"slope": 0.0}, r"slope = 0\.0: input should be greater than 0"),
        ({"slope": "steep"}, "slope = 'steep': input should be a valid number"),
        ({"form": "oval"}, "form = 'oval'"),
        ({"head": 3}, "head: unknown key; allowed: form, slope"),
    ],
)
def test_bad_options_are_errors_that_name_them(options: dict[str, Any], message: str) -> None:
    register_loss("tests.tunable")(Tunable)
    with pytest.raises(BadValue, match=message):
        make_loss("tests.tunable", options)
