"""Evaluation of blocks whose teaching messages matter to what they answer: sweeps up and down, no steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bpfree._rows import Rows
from bpfree.core.block import Block, descend


@torch.no_grad()
def settle(
    blocks: Sequence[Block], rows: Rows, message: Tensor | None, sweeps: int
) -> Iterator[list[Tensor]]:
    """What readouts see of the blocks after each sweep.

    The first sweep finds nothing on the down wire; every later one, what the one before has left there. In
    each, the blocks answer bottom first. What the blocks remember of training is put back at the end.

    Args:
        blocks: Bottom first.
        rows: Input of the lowest, all of them asked about.
        message: What comes to the highest block as its message, from the second sweep on.
        sweeps: Number of sweeps.
    """
    losses = [block.loss for block in blocks]
    before = [loss.memory for loss in losses]
    try:
        for loss in losses:
            loss.memory = None
        heard: list[tuple[Rows, Tensor, Rows]] = []
        for sweep in range(sweeps):
            outputs: list[Tensor] = []
            at = rows
            for k, (block, lesson) in enumerate(
                zip(blocks, descend(blocks, message if sweep else None), strict=True)
            ):
                joined = block.concat_feedback(at, lesson)
                # A block that hears what it has heard before would answer the same again.
                if len(heard) <= k or heard[k][0] is not joined:
                    output = block(joined)
                    heard[k : k + 1] = [(joined, output, block.next_input(joined, output))]
                _, output, at = heard[k]
                outputs.append(block.loss.blend(output, lesson))
                block.loss.memory = block.loss.remembered(output)
            yield outputs
    finally:
        for loss, memory in zip(losses, before, strict=True):
            loss.memory = memory
