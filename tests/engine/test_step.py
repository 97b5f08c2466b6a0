"""One pass of a batch through blocks."""

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


def test_each_block_hears_what_the_one_below_said_before_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = make_blocks()
    with torch.no_grad():
        expected = [X, blocks[0](X), blocks[1](blocks[0](X))]
    heard: list[Tensor] = []
    update = Block.update

    def listening(self: Block, sensed: Any, *args: Any) -> Any:
        assert not sensed.requires_grad
        heard.append(sensed)
        return update(self, sensed, *args)

    monkeypatch.setattr(Block, "update", listening)
    losses = step(blocks, X, Y, seed=0)
    assert len(losses) == 3
    assert all(torch.equal(a, b) for a, b in zip(heard, expected, strict=True))


def test_the_lowest_front_is_asked_unless_it_has_answered_already() -> None:
    plain, told = make_blocks(front=True), make_blocks(front=True)
    losses = step(plain, X, Y, seed=0)
    again = step(told, told[0].run_front(X), Y, seed=0, front_done=True)
    assert all(torch.equal(a, b) for a, b in zip(losses, again, strict=True))


def test_forwarding_takes_no_step_and_keeps_no_graph() -> None:
    blocks = make_blocks()
    with torch.no_grad():
        expected = blocks[2](blocks[1](blocks[0](X)))
    found = forward(blocks, X)
    assert isinstance(found, Tensor)
    assert torch.equal(found, expected)
    assert not found.requires_grad
    assert forward([], X) is X


def test_lessons_come_bottom_first_and_an_empty_wire_stays_empty() -> None:
    class Counting(FeedbackLoss):
        def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
            return output.sum()

        def make_feedback(self, message: Tensor | None) -> tuple[Tensor, Tensor]:
            value = torch.zeros(()) if message is None else message
            return value, value + 1

    class Deaf(Counting):
        def make_feedback(self, message: Tensor | None) -> Any:
            return None, None

    def lessons(*losses: LocalLoss) -> list[float | None]:
        found, _ = send_feedback([Block(nn.Identity(), loss) for loss in losses])
        return [None if own is None else own.item() for own in found]

    assert lessons(Counting(), Counting(), Counting()) == [2.0, 1.0, 0.0]
    assert lessons(Counting(), Deaf(), Counting()) == [0.0, None, 0.0]
