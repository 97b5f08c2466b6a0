"""One pass of a batch through a row of blocks, each taking its step on the way."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bpfree import _seeds
from bpfree._rows import Rows
from bpfree.core.block import Block, send_down
from bpfree.distributed.neighbors import Wires


def step(
    blocks: Sequence[Block],
    rows: Rows,
    target: Tensor,
    seed: int,
    first: int = 0,
    sensed: bool = False,
    message: Tensor | None = None,
    wires: Wires | None = None,
    finite: list[Tensor] | None = None,
) -> list[Tensor]:
    """Update every block on one batch, bottom first, and free its activations before the next.

    Args:
        blocks: The blocks to update.
        rows: Input of the lowest of them.
        target: ``[rows]``.
        seed: Seed of this step; block k draws its noise (dropout) from (seed, k), whatever the schedule.
        first: Number of the lowest block.
        sensed: Whether the lowest block's front has answered to ``rows`` already.
        message: What comes to the highest block as its message.
        wires: To the blocks of other workers, above and below; by default there are none.
        finite: A list to which is added, for each block, whether its output is finite everywhere.

    Returns:
        The loss of each `LocalLoss`, before its block's step, bottom first.
    """
    wires = Wires() if wires is None else wires
    losses: list[Tensor] = []
    lessons, below = send_down(blocks, wires.from_above(message))
    wires.to_below(below)
    rows = wires.from_below(rows)
    for k, (block, lesson) in enumerate(zip(blocks, lessons, strict=True)):
        _seeds.seed_global(target.device, seed, first + k)
        rows = block.concat_feedback(rows, lesson)
        found, output, above = block.train_step(
            rows, target, lesson, front_done=sensed and k == 0, send_up=wires.above or k + 1 < len(blocks)
        )
        if finite is not None:
            finite.append(output.isfinite().all())
        if above is not None:
            rows = above
        losses += found
    wires.to_above(rows)
    return losses


@torch.no_grad()
def ascend(blocks: Sequence[Block], rows: Rows) -> Rows:
    """The output of the highest of ``blocks``, without a step."""
    for block in blocks:
        rows = block.next_input(rows)
    return rows
