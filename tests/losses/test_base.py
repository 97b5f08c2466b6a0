"""The defaults of `LocalLoss`, and the registry of losses."""

from __future__ import annotations

from typing import Annotated, Literal

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


class Minimal(LocalLoss):
    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        return output.sum()


def test_only_forward_is_required() -> None:
    loss = Minimal()
    loss.build(torch.zeros(2, 3), 2)
    assert loss.scores(torch.zeros(2, 3)) is None
    assert list(loss.parameters()) == []


@pytest.mark.parametrize(
    ("name", "replacement"),
    [
        ("teach", "make_feedback"), ("remembered", "next_state"), ("upward", "passed_up"),
        ("blend", "combine"),
        ("output_gradient", "ClosedFormLoss"), ("begin_pass", "OnePassLoss"), ("end_pass", "solve"),
        ("one_pass", "OnePassLoss"), ("planned", "planned_parameters"),
    ],
)  # fmt: skip
def test_methods_of_0_1_are_refused_with_their_replacements(name: str, replacement: str) -> None:
    with pytest.raises(BadValue, match=rf"Old\.{name} is no longer called: use .*{replacement}"):
        type("Old", (Minimal,), {name: lambda self: None})


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("make_feedback", FeedbackLoss), ("next_state", StatefulFeedbackLoss),
        ("closed_form", ClosedFormLoss), ("accumulate", OnePassLoss), ("block_loss", BlockLoss),
        ("probabilities", ScoringLoss),
    ],
)  # fmt: skip
def test_a_method_without_its_base_class_is_refused(name: str, base: type[LocalLoss]) -> None:
    with pytest.raises(BadValue, match="add it to the bases of New"):
        type("New", (Minimal,), {name: lambda self: None})
    assert issubclass(type("New", (Minimal, base), {name: lambda self: None}), base)


def test_a_loss_without_forward_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        LocalLoss()  # type: ignore[abstract]


def test_make_loss_returns_a_new_instance() -> None:
    assert register_loss("tests.minimal")(Minimal) is Minimal
    one, other = make_loss("tests.minimal"), make_loss("tests.minimal")
    assert isinstance(one, Minimal)
    assert one is not other
    assert "tests.minimal" in loss_names()
    assert loss_names() == sorted(loss_names())


def test_a_name_can_only_be_registered_again_for_the_same_class() -> None:
    register_loss("tests.twice")(Minimal)
    register_loss("tests.twice")(Minimal)
    with pytest.raises(BadValue, match=r"'tests\.twice'\): Minimal already has this name"):
        register_loss("tests.twice")(LocalCrossEntropy)


def test_an_unknown_name_raises_an_error_with_a_suggestion() -> None:
    with pytest.raises(BadValue, match="did you mean 'mono_forward'"):
        make_loss("mono_foward")


class Tunable(Minimal):
    """Has two options that a configuration can set, and one that it cannot."""

    def __init__(
        self,
        slope: Annotated[float, Gt(0)] = 1.0,
        form: Literal["round", "square"] = "round",
        head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.slope, self.form, self.head = slope, form, head


def test_options_are_the_arguments_that_a_configuration_can_set() -> None:
    register_loss("tests.tunable")(Tunable)
    loss = make_loss("tests.tunable", {"slope": 2, "form": "square"})
    assert isinstance(loss, Tunable)
    assert (loss.slope, loss.form, loss.head) == (2.0, "square", None)
    assert loss_options("tests.tunable") == ["slope", "form"]
    register_loss("tests.minimal")(Minimal)
    assert loss_options("tests.minimal") == []


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
def test_invalid_options_are_named_in_the_error(options: dict[str, object], message: str) -> None:
    register_loss("tests.tunable")(Tunable)
    with pytest.raises(BadValue, match=message):
        make_loss("tests.tunable", options)
