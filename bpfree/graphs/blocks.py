"""Blocks whose input is the states of all nodes of a graph."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from bpfree._rows import Rows
from bpfree.core.block import Block
from bpfree.graphs.nodes import Ends, Nodes
from bpfree.losses import LocalLoss


class GraphBlock(Block):
    """A block that computes outputs of some nodes, and passes the states of all nodes to the block above."""

    def next_input(self, inputs: Rows, output: Tensor | None = None) -> Nodes:
        """The states of all nodes for the block above.

        Args:
            inputs: The states of all nodes below.
            output: The block's output ``[n, d']`` for them; computed here if it is not given, or is that of
                the target nodes alone.
        """
        assert isinstance(inputs, Nodes)
        if not isinstance(output, Tensor) or inputs.wanted is not None:
            output = self._all_outputs(inputs.whole())
        return inputs.up(output)

    @torch.no_grad()
    def _all_outputs(self, nodes: Nodes) -> Tensor:
        """The output for all nodes, ``[n, d']``. Behind a front, the body maps each row by itself."""
        front_output = self.run_front(nodes)
        if isinstance(front_output, Tensor):
            rows = front_output
            return nodes.store.filled(len(rows), lambda part: self.body(rows[part]).unsqueeze(0))[0]
        output = self.body(front_output)
        return nodes.store.filled(len(output), lambda part: output[None, part])[0]

    def outputs(self, inputs: Rows) -> list[Tensor]:
        assert isinstance(inputs, Nodes)
        output = self(inputs)
        return [output] if inputs.pairs is None else [Ends(output, inputs.pairs)]  # type: ignore[list-item]

    def train_step(
        self,
        inputs: Rows,
        target: Tensor,
        feedback: Tensor | None,
        *,
        front_done: bool = False,
        send_up: bool = True,
    ) -> tuple[list[Tensor], Tensor, Rows | None]:
        inputs = self.concat_feedback(inputs, feedback)
        assert isinstance(inputs, Nodes)
        # A step on some nodes changes the weights: the states of all nodes are computed before it.
        above = self.next_input(inputs) if send_up and inputs.wanted is not None else None
        losses, output = self.update(self.run_front(inputs), target, feedback)
        passed_up = self.advance_state(output) if self._stateful else output
        if send_up and above is None:
            above = self.next_input(inputs, passed_up)
        return losses, output, above


class FeedbackGraphBlock(GraphBlock):
    """A `GraphBlock` whose front and body read the feedback from the block above beside the states below.

    Args:
        body: The learned part.
        loss: The objective.
        front: The fixed part.
        feedback_width: Width of the feedback, ``[n, feedback_width]``.
    """

    def __init__(
        self, body: nn.Module, loss: LocalLoss, front: nn.Module | None, feedback_width: int
    ) -> None:
        super().__init__(body, loss, front)
        self.feedback_width = feedback_width

    def concat_feedback(self, inputs: Rows, feedback: Tensor | None) -> Nodes:
        """The states with the feedback as further columns; zeros if there is none."""
        assert isinstance(inputs, Nodes)
        states = inputs.states[0]
        if feedback is None:
            feedback = states.new_zeros(len(states), self.feedback_width)
        return replace(inputs, beside=feedback.detach())
