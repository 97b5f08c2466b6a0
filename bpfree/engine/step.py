"""One training step: feedback from top to bottom, then an update of each block, bottom first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bpfree import _seeds
from bpfree._rows import Rows
from bpfree.core.block import BaseBlock, send_feedback
from bpfree.distributed.neighbors import Neighbors


def step(
    blocks: Sequence[BaseBlock],
    inputs: Rows,
    target: Tensor,
    seed: int,
    first: int = 0,
    front_done: bool = False,
    message: Tensor | None = None,
    finite: list[Tensor] | None = None,
) -> list[Tensor]:
    """Update each block on one batch, and free its activations before the next block is updated.

    Args:
        blocks: The blocks to update, bottom first.
        inputs: Input of the lowest of these blocks.
        target: ``[rows]``.
        seed: Seed of this step. The random stream of block k (dropout) has the seed (seed, k).
        first: Index of the lowest of these blocks in the cascade.
        front_done: Whether ``inputs`` are the output of the lowest block's front.
        message: The message for the top block.
        finite: A list. For each block, a boolean tensor is appended that is true if its output is finite.

    Returns:
        The value of each `LocalLoss` before the update of its block, bottom first.
    """
    feedback, _ = send_feedback(blocks, message)
    return _update(blocks, inputs, target, seed, feedback, first, front_done, False, finite)[0]


def linked_step(
    neighbors: Neighbors,
    blocks: Sequence[BaseBlock],
    inputs: Rows,
    target: Tensor,
    seed: int,
    first: int = 0,
    front_done: bool = False,
    message: Tensor | None = None,
    finite: list[Tensor] | None = None,
) -> list[Tensor]:
    """`step` of a worker whose blocks are above or below those of other workers.

    Args:
        neighbors: The connections to the workers above and below.
        blocks: As for `step`.
        inputs: As for `step`; used by the lowest worker.
        target: As for `step`.
        seed: As for `step`.
        first: As for `step`.
        front_done: As for `step`.
        message: As for `step`; used by the highest worker.
        finite: As for `step`.
    """
    feedback, below = send_feedback(blocks, neighbors.receive_feedback(message))
    neighbors.send_feedback(below)
    inputs = neighbors.receive_inputs(inputs)
    losses, above = _update(
        blocks, inputs, target, seed, feedback, first, front_done, neighbors.above, finite
    )
    if above is not None:
        neighbors.send_outputs(above)
    return losses


def _update(
    blocks: Sequence[BaseBlock],
    inputs: Rows,
    target: Tensor,
    seed: int,
    feedback: Sequence[Tensor | None],
    first: int,
    front_done: bool,
    send_up: bool,
    finite: list[Tensor] | None,
) -> tuple[list[Tensor], Rows | None]:
    """Update the blocks, given their feedback; return the losses and the input of the block above."""
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
    """Compute the input of the block above ``blocks``, without an update."""
    for block in blocks:
        inputs = block.next_input(inputs)
    return inputs
