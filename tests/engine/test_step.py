"""One training step of a cascade."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bpfree import Block
from bpfree.core.block import send_feedback
from bpfree.engine.step import forward, step
from bpfree.losses import FeedbackLoss, LocalCrossEntropy, LocalLoss
from tests.helpers import CLASSES, vectors

X, Y = vectors().batch(torch.arange(8))


def make_blocks(n: int = 3, front: bool = False) -> list[Block]:
    torch.manual_seed(0)
    blocks, rows = [], X
    for _ in range(n):
        block = Block(nn.Linear(12, 12), LocalCrossEntropy(), nn.Linear(12, 12) if front else None)
        rows = block.build(rows, CLASSES)
        block.optimizer = torch.optim.SGD(block.trainable(), 0.5)
        blocks.append(block)
    return blocks


def test_the_input_of_each_block_is_the_output_below_before_its_update(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blocks = make_blocks()
    with torch.no_grad():
        expected = [X, blocks[0](X), blocks[1](blocks[0](X))]
    inputs: list[Tensor] = []
    update = Block.update

    def recording(self: Block, front_output: Any, *args: Any) -> Any:
        assert not front_output.requires_grad
        inputs.append(front_output)
        return update(self, front_output, *args)

    monkeypatch.setattr(Block, "update", recording)
    losses = step(blocks, X, Y, seed=0)
    assert len(losses) == 3
    assert all(torch.equal(a, b) for a, b in zip(inputs, expected, strict=True))


def test_with_front_done_the_lowest_front_is_not_called() -> None:
    blocks, front_done = make_blocks(front=True), make_blocks(front=True)
    losses = step(blocks, X, Y, seed=0)
    again = step(front_done, front_done[0].run_front(X), Y, seed=0, front_done=True)
    assert all(torch.equal(a, b) for a, b in zip(losses, again, strict=True))


def test_forward_has_no_update_and_no_graph() -> None:
    blocks = make_blocks()
    with torch.no_grad():
        expected = blocks[2](blocks[1](blocks[0](X)))
    output = forward(blocks, X)
    assert isinstance(output, Tensor)
    assert torch.equal(output, expected)
    assert not output.requires_grad
    assert forward([], X) is X


def test_feedback_is_returned_bottom_first_and_no_message_stays_none() -> None:
    class Counting(FeedbackLoss):
        def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
            return output.sum()

        def make_feedback(self, message: Tensor | None) -> tuple[Tensor, Tensor]:
            value = torch.zeros(()) if message is None else message
            return value, value + 1

    class NoFeedback(Counting):
        def make_feedback(self, message: Tensor | None) -> Any:
            return None, None

    def values(*losses: LocalLoss) -> list[float | None]:
        feedback, _ = send_feedback([Block(nn.Identity(), loss) for loss in losses])
        return [None if tensor is None else tensor.item() for tensor in feedback]

    assert values(Counting(), Counting(), Counting()) == [2.0, 1.0, 0.0]
    assert values(Counting(), NoFeedback(), Counting()) == [0.0, None, 0.0]
