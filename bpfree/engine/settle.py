"""Evaluation of blocks whose outputs depend on feedback: sweeps down and up, without steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bpfree._rows import Rows
from bpfree.core.block import BaseBlock, send_feedback
from bpfree.losses import StatefulFeedbackLoss


@torch.no_grad()
def settle(
    blocks: Sequence[BaseBlock], inputs: Rows, message: Tensor | None, sweeps: int
) -> Iterator[list[Tensor]]:
    """What readouts receive of the blocks after each sweep.

    There is no feedback in the first sweep; each later one uses the states that the sweep before has left.
    In a sweep the blocks are computed bottom first. Afterwards the states are those of training again.

    Args:
        blocks: Bottom first.
        inputs: Input of the lowest, for all nodes or samples.
        message: The message for the highest block, from the second sweep on.
        sweeps: Number of sweeps.
    """
    losses = [block.loss for block in blocks if isinstance(block.loss, StatefulFeedbackLoss)]
    before = [loss.state for loss in losses]
    try:
        for loss in losses:
            loss.state = None
        # For each block its last input, with its output and the input of the block above.
        computed: list[tuple[Rows, Tensor, Rows]] = []
        for sweep in range(sweeps):
            outputs: list[Tensor] = []
            current = inputs
            feedback, _ = send_feedback(blocks, message if sweep else None)
            for k, (block, own) in enumerate(zip(blocks, feedback, strict=True)):
                joined = block.concat_feedback(current, own)
                # The same input gives the same output again.
                if len(computed) <= k or computed[k][0] is not joined:
                    output = block(joined)
                    computed[k : k + 1] = [(joined, output, block.next_input(joined, output))]
                _, output, current = computed[k]
                if isinstance(block.loss, StatefulFeedbackLoss):
                    outputs.append(block.loss.combine(output, own))
                    block.loss.state = block.loss.next_state(output)
                else:
                    outputs.append(output)
            yield outputs
    finally:
        for loss, state in zip(losses, before, strict=True):
            loss.state = state
