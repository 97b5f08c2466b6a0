"""`JointBlock`: several blocks that are updated by one backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from bpfree._rows import Rows
from bpfree.core.block import BaseBlock, Block, LossInput, send_feedback
from bpfree.core.update_rules import AnyRule, Autograd, Objective
from bpfree.losses import LocalLoss


class JointBlock(BaseBlock):
    """Several blocks that are updated together, for deep supervision and backpropagation.

    The weighted sum of the inner losses is differentiated; the losses are reported without weights. With
    ``detach=False`` the gradient of each loss reaches all blocks below it: this is the BP baseline, with
    locality L0. With ``detach=True`` no gradient crosses an inner block boundary: this is the simultaneous
    schedule with one backward pass of the summed loss.

    Args:
        blocks: The inner blocks, bottom first.
        weights: A weight for each inner loss.
        detach: Whether activations are detached between the inner blocks.
        rule: The rule that computes the gradients of all blocks; by default one backward pass.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        weights: Sequence[float],
        detach: bool = False,
        rule: AnyRule | None = None,
    ) -> None:
        super().__init__()
        self.front = None
        self.blocks = nn.ModuleList(blocks)
        self.weights, self.detach = list(weights), detach
        self.rule = Autograd() if rule is None else rule

    @property
    def parts(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))

    @property
    def loss(self) -> LocalLoss:  # type: ignore[override]
        return self.parts[-1].loss

    def forward(self, inputs: Rows) -> Tensor:
        return self.outputs(inputs)[-1]

    def body_output(self, front_output: Rows) -> Tensor:
        return self.outputs(front_output)[-1]

    def outputs(self, inputs: Rows) -> list[Tensor]:
        return self._inputs_and_outputs(inputs)[1]

    def _inputs_and_outputs(self, inputs: Rows) -> tuple[list[Rows], list[Tensor]]:
        """The input of each inner block, and its output."""
        all_inputs: list[Rows] = []
        outputs: list[Tensor] = []
        for block in self.blocks:
            all_inputs.append(inputs)
            outputs.append(block(inputs))
            inputs = outputs[-1].detach() if self.detach else outputs[-1]
        return all_inputs, outputs

    def loss_inputs(self, outputs: list[Tensor], target: Tensor, feedback: Tensor | None) -> list[LossInput]:
        return list(
            zip(
                self.losses,
                self.loss_outputs(outputs, target),
                self.inner_feedback(outputs, target),
                strict=True,
            )
        )

    def loss_outputs(self, outputs: list[Tensor], target: Tensor) -> list[Tensor]:
        """Return the outputs that the inner losses are computed from; by default ``outputs``."""
        return outputs

    def inner_feedback(self, outputs: list[Tensor], target: Tensor) -> list[Tensor | None]:
        """Return the feedback of each inner block, bottom first. It can depend on the outputs."""
        return send_feedback(self.parts)[0]

    def objective(self, front_output: Rows, target: Tensor, feedback: Tensor | None) -> Objective:
        inputs, outputs = self._inputs_and_outputs(front_output)
        losses = [
            part.loss_value(part_inputs, output, target, inner_feedback)
            for part, part_inputs, (_, output, inner_feedback) in zip(
                self.parts, inputs, self.loss_inputs(outputs, target, feedback), strict=True
            )
        ]
        total = torch.stack([w * loss for w, loss in zip(self.weights, losses, strict=True)]).sum()
        return Objective(losses, total, outputs[-1])

    def probe(self, inputs: Rows) -> list[tuple[LocalLoss, Tensor]]:
        probes: list[tuple[LocalLoss, Tensor]] = []
        for block in self.parts:
            probes += block.probe(inputs)
            inputs = probes[-1][1]
        return probes

    def learned_parameters(self) -> list[nn.Parameter]:
        return list(dict.fromkeys(p for block in self.parts for p in block.learned_parameters()))

    def train(self, mode: bool = True) -> JointBlock:
        super().train(mode)
        self.overwriting = [relu for block in self.parts for relu in block.overwriting]
        return self
