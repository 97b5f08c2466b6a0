"""Losses with feedback that receive no message from the block above."""

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
    """Cross-entropy, plus a term of the feedback if there is any."""

    def make_feedback(self, message: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        return message, self.linear.weight.mean(0)

    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        loss = super().forward(output, target)
        return loss if feedback is None else loss + F.mse_loss(output.mean(0), feedback)


@register_loss("tests.feedback_silent")
class Silent(Feedback):
    """Sends the message that it receives."""

    def make_feedback(self, message: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        return message, message


@register_loss("tests.feedback_needed")
class Needed(Feedback):
    """Fails without a message."""

    def make_feedback(self, message: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        assert message is not None, "no message"
        return message, message


def fit(loss: str, **settings: str) -> list[str]:
    """Return the warnings of a run."""
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Local(make_mlp(16, 16, 16), loss=loss, progress=False, **settings).fit(
            vectors(), epochs=2, batch_size=16
        )
    return [str(warning.message) for warning in caught]


def test_a_run_warns_once_about_blocks_without_messages() -> None:
    (text,) = fit("tests.feedback")
    assert text.startswith(
        "block 2 (Feedback) gets no message from block 3 (LocalCrossEntropy) above it: let "
    )
    (text,) = fit("tests.feedback_silent", output="none")
    assert "block 1 (Silent) gets no message from block 2 (Silent)" in text
    assert "block 2 (Silent) gets no message from block 3 (Silent)" in text


def test_there_is_no_warning_if_all_blocks_have_messages() -> None:
    assert fit("tests.feedback", output="none") == []
    assert fit("mono_forward") == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TRAINERS["counter_current"](make_mlp(16, 16), progress=False).fit(vectors(), epochs=1)


def test_a_loss_that_fails_without_a_message_is_refused() -> None:
    with pytest.raises(BadValue, match=r"block 2 \(Needed\) gets no message from .* \(no message\): let the"):
        Local(make_mlp(16, 16, 16), loss="tests.feedback_needed", progress=False).fit(vectors(), epochs=1)


def test_check_local_loss_warns_once_too() -> None:
    with pytest.warns(UserWarning, match=r"block 2 \(Feedback\) gets no message") as caught:
        check_local_loss("tests.feedback")
    assert len(caught) == 1
