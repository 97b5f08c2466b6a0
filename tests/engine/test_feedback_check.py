"""Losses that take messages from the block above, and are sent none."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bpfree import BadValue, Local, register_loss
from bpfree.losses import FeedbackLoss, LocalCrossEntropy
from bpfree.testing import check_local_loss
from bpfree.trainers import TRAINERS
from tests.helpers import make_mlp, vectors


@register_loss("tests.feedback")
class Feedback(LocalCrossEntropy, FeedbackLoss):
    """Cross-entropy, and the share of the head above in it, where that is sent."""

    def make_feedback(self, message: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        return message, self.linear.weight.mean(0)

    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        loss = super().forward(output, target)
        return loss if feedback is None else loss + F.mse_loss(output.mean(0), feedback)


@register_loss("tests.feedback_silent")
class Silent(Feedback):
    """Sends nothing where it is sent nothing."""

    def make_feedback(self, message: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        return message, message


@register_loss("tests.feedback_needed")
class Needed(Feedback):
    """Fails where it is sent nothing."""

    def make_feedback(self, message: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        assert message is not None, "no message"
        return message, message


def fit(loss: str, **settings: str) -> list[str]:
    """What is said in a run."""
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        Local(make_mlp(16, 16, 16), loss=loss, progress=False, **settings).fit(
            vectors(), epochs=2, batch_size=16
        )
    return [str(warning.message) for warning in found]


def test_a_run_says_once_which_block_is_sent_nothing() -> None:
    (text,) = fit("tests.feedback")
    assert text.startswith(
        "block 2 (Feedback) gets no message from block 3 (LocalCrossEntropy) above it: let "
    )
    (text,) = fit("tests.feedback_silent", output="none")
    assert "block 1 (Silent) gets no message from block 2 (Silent)" in text
    assert "block 2 (Silent) gets no message from block 3 (Silent)" in text


def test_where_all_are_sent_some_nothing_is_said() -> None:
    assert fit("tests.feedback", output="none") == []
    assert fit("mono_forward") == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TRAINERS["counter_current"](make_mlp(16, 16), progress=False).fit(vectors(), epochs=1)


def test_a_loss_that_fails_without_a_message_is_refused() -> None:
    with pytest.raises(BadValue, match=r"block 2 \(Needed\) gets no message from .* \(no message\): let the"):
        Local(make_mlp(16, 16, 16), loss="tests.feedback_needed", progress=False).fit(vectors(), epochs=1)


def test_the_check_of_a_loss_says_so_too() -> None:
    with pytest.warns(UserWarning, match=r"block 2 \(Feedback\) gets no message") as said:
        check_local_loss("tests.feedback")
    assert len(said) == 1
