"""One pass of a batch through a row of blocks, each taking its step on the way."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bpfree import _seeds
from bpfree._rows import Rows
from bpfree.core.block import Block, send_down
from bpfree.distributed.neighbors import Neighbors
from bpfree.graphs.nodes import Nodes


def step(
    blocks: Sequence[Block],
    rows: Rows,
    target: Tensor,
    seed: int,
    first: int = 0,
    front_output: bool = False,
    message: Tensor | None = None,
    neighbors: Neighbors | None = None,
    finite: list[Tensor] | None = None,
) -> list[Tensor]:
    """Update every block on one batch, bottom first, and free its activations before the next.

    Args:
        blocks: The blocks to update.
        rows: Input of the lowest of them.
        target: ``[rows]``.
        seed: Seed of this step; block k draws its noise (dropout) from (seed, k), whatever the schedule.
        first: Number of the lowest block.
        front_output: Whether ``rows`` are outputs of the lowest block's front.
        message: What comes to the highest block as its message.
        neighbors: Connections to the blocks of other workers; by default there are none.
        finite: A list to which is added, for each block, whether its output is finite everywhere.

    Returns:
        The loss of each `LocalLoss`, before its block's step, bottom first.
    """
    neighbors = Neighbors() if neighbors is None else neighbors
    losses: list[Tensor] = []
    lessons, below = send_down(blocks, neighbors.receive_feedback(message))
    neighbors.send_feedback(below)
    rows = neighbors.receive_inputs(rows)
    for k, (block, lesson) in enumerate(zip(blocks, lessons, strict=True)):
        _seeds.seed_global(target.device, seed, first + k)
        rows = block.join(rows, lesson)
        # The step asks about some nodes, the blocks above about all: those must be told before it is taken.
        heard = neighbors.above or k + 1 < len(blocks)
        some = heard and isinstance(rows, Nodes) and rows.wanted is not None
        above = block.onward(rows) if some else None
        found, output = block.update(rows if front_output and k == 0 else block.sense(rows), target, lesson)
        if finite is not None:
            finite.append(output.isfinite().all())
        shown = block.loss.upward(output)
        for loss in block.losses:
            loss.memory = loss.remembered(output)
        if heard:
            rows = above if above is not None else block.onward(rows, shown)
        losses += found
    neighbors.send_outputs(rows)
    return losses


@torch.no_grad()
def ascend(blocks: Sequence[Block], rows: Rows) -> Rows:
    """The output of the highest of ``blocks``, without a step."""
    for block in blocks:
        rows = block.onward(rows)
    return rows
