"""The defaults of `LocalLoss`, and the registry of losses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bpfree import BadValue, LocalLoss, register_loss
from bpfree.losses import LocalCrossEntropy, loss_names, make_loss


class Least(LocalLoss):
    def forward(self, output: Tensor, target: Tensor, lesson: Tensor | None = None) -> Tensor:
        return output.sum()


def test_a_loss_needs_nothing_but_forward() -> None:
    loss = Least()
    loss.build(torch.zeros(2, 3), 2)
    assert loss.scores(torch.zeros(2, 3)) is None
    assert loss.teach(torch.zeros(1)) == (None, None)
    assert list(loss.parameters()) == []
    with pytest.raises(TypeError, match="Least has no closed-form gradient"):
        loss.output_gradient(torch.zeros(2, 3), torch.zeros(2))


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
