"""Evaluation of blocks whose outputs depend on feedback: several sweeps over the blocks."""

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
    """Yield the outputs that readouts receive, bottom first, after each sweep.

    There is no feedback in the first sweep. Each later sweep uses the states of the previous one. In a sweep
    the blocks are computed bottom first. At the end the states of the losses are restored.

    Args:
        blocks: Bottom first.
        inputs: Input of the lowest block, for all nodes or samples.
        message: The message for the top block, from the second sweep on.
        sweeps: Number of sweeps.
    """
    losses = [block.loss for block in blocks if isinstance(block.loss, StatefulFeedbackLoss)]
    before = [loss.state for loss in losses]
    try:
        for loss in losses:
            loss.state = None
        # For each block: its last input, its output, and the input of the block above.
        computed: list[tuple[Rows, Tensor, Rows]] = []
        for sweep in range(sweeps):
            outputs: list[Tensor] = []
            current = inputs
            feedback, _ = send_feedback(blocks, message if sweep else None)
            for k, (block, block_feedback) in enumerate(zip(blocks, feedback, strict=True)):
                block_input = block.concat_feedback(current, block_feedback)
                # The output for the same input is not computed again.
                if len(computed) <= k or computed[k][0] is not block_input:
                    output = block(block_input)
                    computed[k : k + 1] = [(block_input, output, block.next_input(block_input, output))]
                _, output, current = computed[k]
                if isinstance(block.loss, StatefulFeedbackLoss):
                    outputs.append(block.loss.combine(output, block_feedback))
                    block.loss.state = block.loss.next_state(output)
                else:
                    outputs.append(output)
            yield outputs
    finally:
        for loss, state in zip(losses, before, strict=True):
            loss.state = state
