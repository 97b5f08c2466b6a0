"""One training step of a batch: feedback from top to bottom, then an update of every block, bottom first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bpfree import _seeds
from bpfree._rows import Rows
from bpfree.core.block import BaseBlock, send_feedback
from bpfree.distributed.neighbors import Wires


def step(
    blocks: Sequence[BaseBlock],
    inputs: Rows,
    target: Tensor,
    seed: int,
    first: int = 0,
    front_done: bool = False,
    message: Tensor | None = None,
    wires: Wires | None = None,
    finite: list[Tensor] | None = None,
) -> list[Tensor]:
    """Update every block on one batch, and free its activations before the next.

    Args:
        blocks: The blocks to update, bottom first.
        inputs: Input of the lowest of them.
        target: ``[rows]``.
        seed: Seed of this step. Block k draws its noise (dropout) from (seed, k), whatever the schedule.
        first: Number of the lowest block.
        front_done: Whether ``inputs`` are the output of the lowest block's front.
        message: The message for the highest block.
        wires: To the blocks of other workers, above and below; by default there are none.
        finite: A list to which is added, for each block, whether its output is finite everywhere.

    Returns:
        The loss of each `LocalLoss`, before its block's step, bottom first.
    """
    if wires is None:
        feedback, _ = send_feedback(blocks, message)
        return update_blocks(blocks, inputs, target, seed, feedback, first, front_done, False, finite)[0]
    feedback, below = send_feedback(blocks, wires.from_above(message))
    wires.to_below(below)
    inputs = wires.from_below(inputs)
    losses, above = update_blocks(
        blocks, inputs, target, seed, feedback, first, front_done, wires.above, finite
    )
    if above is not None:
        wires.to_above(above)
    return losses


def update_blocks(
    blocks: Sequence[BaseBlock],
    inputs: Rows,
    target: Tensor,
    seed: int,
    feedback: Sequence[Tensor | None],
    first: int = 0,
    front_done: bool = False,
    send_up: bool = False,
    finite: list[Tensor] | None = None,
) -> tuple[list[Tensor], Rows | None]:
    """Update blocks that have received their feedback, bottom first.

    Args:
        blocks: As for `step`.
        inputs: As for `step`.
        target: As for `step`.
        seed: As for `step`.
        feedback: Each block's own feedback.
        first: As for `step`.
        front_done: As for `step`.
        send_up: Whether a block of another worker is above them.
        finite: As for `step`.

    Returns:
        The losses, and the input of the block above the highest, if ``send_up``.
    """
    losses: list[Tensor] = []
    highest = len(blocks) - 1
    above: Rows | None = inputs
    for k, block in enumerate(blocks):
        assert above is not None
        _seeds.seed_global(target.device, seed, first + k)
        values, output, above = block.train_step(
            above, target, feedback[k], front_done=front_done and k == 0, send_up=send_up or k < highest
        )
        losses += values
        if finite is not None:
            finite.append(output.isfinite().all())
    return losses, above


@torch.no_grad()
def forward(blocks: Sequence[BaseBlock], inputs: Rows) -> Rows:
    """The input of the block above ``blocks``, without a step."""
    for block in blocks:
        inputs = block.next_input(inputs)
    return inputs
