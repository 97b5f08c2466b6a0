"""Blocks whose input is the states of all nodes of a graph."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from bpfree._rows import Rows
from bpfree.core.block import Block
from bpfree.graphs.nodes import Nodes, PairOutputs
from bpfree.losses import LocalLoss


class GraphBlock(Block):
    """A block that computes outputs of the target nodes, and sends the states of all nodes up."""

    def next_input(self, inputs: Rows, output: Tensor | None = None) -> Nodes:
        """The states of all nodes for the block above, with the same query.

        Args:
            inputs: The states of all nodes below.
            output: The block's output ``[variants * n, d']`` for all nodes. It is computed here if it is not
                given, or if ``inputs`` has target nodes, to which ``output`` then belongs.
        """
        assert isinstance(inputs, Nodes)
        if not isinstance(output, Tensor) or inputs.query.target_nodes is not None:
            output = self._all_outputs(inputs.for_next_layer())
        return inputs.next_layer(output)

    @torch.no_grad()
    def _all_outputs(self, nodes: Nodes) -> Tensor:
        """The output for all nodes. Behind a front, the body computes each row by itself."""
        store, front_output = nodes.cache.store, self.run_front(nodes)
        if isinstance(front_output, Tensor):
            rows = front_output
            return store.filled(len(rows), lambda part: self.body(rows[part]).unsqueeze(0))[0]
        output = self.body(front_output)
        return store.filled(len(output), lambda part: output[None, part])[0]

    def outputs(self, inputs: Rows) -> list[Tensor]:
        assert isinstance(inputs, Nodes)
        output, pairs = self(inputs), inputs.query.pairs
        return [output] if pairs is None else [PairOutputs(output, pairs)]  # type: ignore[list-item]

    def evaluate(self, inputs: Rows) -> tuple[list[Tensor], Rows]:
        inputs = self.concat_feedback(inputs, None)
        outputs = self.outputs(inputs)
        return outputs, self.next_input(inputs, outputs[-1])

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
        # The step computes the outputs of the target nodes alone, and then changes the weights. So the
        # outputs of all nodes are computed before it.
        some = send_up and isinstance(inputs, Nodes) and inputs.query.target_nodes is not None
        above = self.next_input(inputs) if some else None
        losses, output = self.update(inputs if front_done else self.run_front(inputs), target, feedback)
        passed_up = self.advance_state(output) if self._stateful else output
        if send_up and above is None:
            above = self.next_input(inputs, passed_up)
        return losses, output, above


class FeedbackGraphBlock(GraphBlock):
    """A `GraphBlock` whose front and body take the feedback from the block above as further columns.

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
        states = inputs.states
        if feedback is None:
            feedback = states.states[0].new_zeros(states.n_nodes, self.feedback_width)
        return replace(inputs, states=replace(states, feedback=feedback.detach()))
