"""Several blocks under one backward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bpfree._rows import Rows
from bpfree.core.block import Block, descend
from bpfree.losses import LocalLoss


class JointBlock(Block):
    """Several blocks under one backward pass: deep supervision, or backpropagation, as one block.

    What is differentiated is the weighted sum of the inner losses; what is told are they themselves. With
    the walls open (``detach=False``) the gradient of each reaches every block below it: this is the control
    of the local methods, locality L0. With the walls closed it is the simultaneous schedule with one summed
    backward.

    Args:
        blocks: The inner blocks, bottom first.
        weights: A weight for each inner loss.
        detach: Whether the walls are closed.
    """

    def __init__(self, blocks: Sequence[Block], weights: Sequence[float], detach: bool = False) -> None:
        nn.Module.__init__(self)
        self.blocks = nn.ModuleList(blocks)
        self.weights, self.detach_walls, self.gradients = list(weights), detach, "autograd"
        self.front = None
        self._objective = self.objective

    @property
    def inner(self) -> list[Block]:
        """The inner blocks, bottom first."""
        return list(self.blocks)  # type: ignore[arg-type]

    @property
    def losses(self) -> list[LocalLoss]:
        return [block.loss for block in self.inner]

    @property
    def loss(self) -> LocalLoss:  # type: ignore[override]
        """The top block's loss: the messages of inner blocks stay inside."""
        return self.inner[-1].loss

    def seen(self, rows: Rows) -> list[tuple[LocalLoss, Tensor]]:
        found: list[tuple[LocalLoss, Tensor]] = []
        for block in self.inner:
            found += block.seen(rows)
            rows = found[-1][1]
        return found

    def hold(self) -> None:
        for block in self.inner:
            block.hold()

    def forward(self, rows: Rows) -> Tensor:
        return self.outputs(rows)[-1]

    def outputs(self, rows: Rows) -> list[Tensor]:
        outputs: list[Tensor] = []
        for block in self.inner:
            outputs.append(block(rows))
            rows = outputs[-1].detach() if self.detach_walls else outputs[-1]
        return outputs

    def objective(self, sensed: Rows, target: Tensor, lesson: Tensor | None) -> tuple[list[Tensor], Tensor]:
        outputs = self.outputs(sensed)
        judged, lessons = self.judged(outputs, target), self.lessons(outputs, target)
        parts = zip(self.losses, judged, lessons, strict=True)
        return [loss(output, target, own) for loss, output, own in parts], outputs[-1]

    def total(self, losses: Sequence[Tensor]) -> Tensor:
        return torch.stack([w * loss for w, loss in zip(self.weights, losses, strict=True)]).sum()

    def judged(self, outputs: list[Tensor], target: Tensor) -> list[Tensor]:
        """What the inner losses see of the outputs: all of it."""
        return outputs

    def _overwriting(self) -> list[nn.ReLU]:
        return [relu for block in self.inner for relu in block.relus]

    def trainable(self) -> list[nn.Parameter]:
        return list(dict.fromkeys(p for block in self.inner for p in block.trainable()))

    def lessons(self, outputs: list[Tensor], target: Tensor) -> list[Tensor | None]:
        """The lesson of each inner loss; here all outputs of the batch are known when they are made."""
        return descend(self.inner)
