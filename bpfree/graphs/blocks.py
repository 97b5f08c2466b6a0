"""Blocks on the nodes of a graph: the states of all nodes go up, and feedback can be an input."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bpfree._rows import Rows
from bpfree.core.block import Block
from bpfree.core.update_rules import UpdateRule
from bpfree.graphs.nodes import Ends, Nodes
from bpfree.losses import LocalLoss


class GraphBlock(Block):
    """A block whose input is `Nodes`.

    Args:
        body: As for `Block`.
        loss: As for `Block`.
        front: As for `Block`.
        rule: As for `Block`.
        upper: Width of the feedback that is concatenated to the states; None: it is for the loss alone.
    """

    def __init__(
        self,
        body: nn.Module,
        loss: LocalLoss,
        front: nn.Module | None = None,
        rule: UpdateRule[Any] | None = None,
        upper: int | None = None,
    ) -> None:
        super().__init__(body, loss, front, rule)
        self.upper = upper

    def concat_feedback(self, inputs: Rows, feedback: Tensor | None) -> Rows:
        if not self.upper:
            return inputs
        assert isinstance(inputs, Nodes)
        states = inputs.states[0]
        above = states.new_zeros(len(states), self.upper) if feedback is None else feedback.detach()
        return replace(inputs, beside=above)

    def next_input(self, inputs: Rows, output: Tensor | None = None) -> Rows:
        assert isinstance(inputs, Nodes)
        if not isinstance(output, Tensor) or inputs.wanted is not None:
            output = self._of_all(inputs.whole())
        return inputs.up(output)

    @torch.no_grad()
    def _of_all(self, nodes: Nodes) -> Tensor:
        """The output for all nodes; behind a front the body sees each row by itself."""
        front_output = self.run_front(nodes)
        if isinstance(front_output, Tensor):
            rows = front_output
            return nodes.store.filled(len(rows), lambda at: self.body(rows[at]).unsqueeze(0))[0]
        output = self.body(front_output)
        return nodes.store.filled(len(output), lambda at: output[None, at])[0]

    def outputs(self, inputs: Rows) -> list[Tensor]:
        output = self(inputs)
        assert isinstance(inputs, Nodes)
        return [Ends(output, inputs.pairs)] if inputs.pairs is not None else [output]  # type: ignore[list-item]

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
        # The step is for some nodes, the block above needs all: their states are those before the update.
        above = self.next_input(inputs) if send_up and inputs.wanted is not None else None
        losses, output = self.update(self.run_front(inputs), target, feedback)
        passed_up = self.advance_state(output) if self._stateful else output
        if send_up and above is None:
            above = self.next_input(inputs, passed_up)
        return losses, output, above
