"""Equal blocks that take their steps at once: what is one product for each becomes one for all."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree.cascade import Block, JointBlock, Rows
from bpfree.losses import LocalCrossEntropy
from bpfree.nn._closed_form import BACKWARD, FORWARD
from bpfree.nn.layout import match_gradient_strides
from bpfree.nn.weights import is_plain


class StackedBlock(JointBlock):
    """Neighbouring blocks ``Linear(n, n), activation`` under Mono-Forward, with the walls closed.

    The output of each is made one after another, without a graph; then all take the closed form of their step
    together, in batched products, and one optimizer moves all: where a step is bound by launching operations,
    backpropagation has no such choice, since there each layer waits for the gradient of the one above. What
    is computed is what the blocks would compute by themselves.

    The weights of all lie in one tensor ``[L, ...]`` of each kind, of which the layers' own are parts.

    Args:
        blocks: The inner blocks, bottom first; all alike, see `stacked`.

    Raises:
        BadValue: When its optimizer is made, if a layer has been frozen.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__(blocks, [1.0] * len(blocks), detach=True)
        self.gradients = "analytic"
        # In a tuple they are not the module's own: they would stand in its state twice.
        self._stacks: tuple[nn.Parameter, ...] = ()
        self._layers: tuple[list[Any], ...] = ()

    def trainable(self) -> list[nn.Parameter]:
        frozen = [name for name, p in self.named_parameters() if not p.requires_grad]
        if frozen:
            raise BadValue(
                f"gradients = 'stacked': {frozen[0]} is frozen, and stacked layers learn together; leave it "
                "free, or use 'analytic'"
            )
        return list(self._bound())

    def _bound(self) -> tuple[nn.Parameter, ...]:
        """The stacks: weights ``[L, n, n]``, heads ``[L, C, n]`` and, if there are any, biases ``[L, n]``.

        Layers that were copied, moved or replaced have left them, and are brought back.
        """
        if not self._layers:
            layers = [block.body[0] for block in self.inner]  # type: ignore[index]
            self._layers = (layers, [loss.linear for loss in self.losses])
        layers, heads = self._layers
        kinds = [[layer.weight for layer in layers], [head.weight for head in heads]]
        kinds += [[layer.bias for layer in layers]] if layers[0].bias is not None else []
        if not self._stacks:
            self._stacks = tuple(nn.Parameter(torch.stack([p.detach() for p in kind])) for kind in kinds)
        for stack, kind in zip(self._stacks, kinds, strict=True):
            if any(p.data_ptr() != part.data_ptr() for p, part in zip(kind, stack.unbind(0), strict=True)):
                stack.data = torch.stack([p.detach() for p in kind])
                for parameter, part in zip(kind, stack.data.unbind(0), strict=True):
                    parameter.data = part
        return self._stacks

    @torch.no_grad()
    def _step(self, sensed: Rows, target: Tensor, lesson: Tensor | None) -> tuple[list[Tensor], Tensor]:
        assert self.optimizer is not None
        assert isinstance(sensed, Tensor)
        weight, head, *bias = self._bound()
        activation: Any = self.inner[0].body[1]  # type: ignore[index]
        kind = type(activation)
        rows = sensed.new_empty(len(weight) + 1, *sensed.shape)
        rows[0] = sensed
        inputs, outputs = rows[:-1], rows[1:]
        shifts = bias[0].unbind(0) if bias else [sensed.new_zeros(1)] * len(weight)
        parts = zip(inputs.unbind(0), outputs.unbind(0), weight.mT.unbind(0), shifts, strict=True)
        for below, above, turned, shift in parts:
            FORWARD[kind](activation, torch.addmm(shift, below, turned, out=above))
        loss, error = self.losses[0].score_gradient(outputs @ head.mT, target)  # type: ignore[operator]
        head.grad = error.mT @ outputs
        error = BACKWARD[kind](activation, error @ head, outputs)
        weight.grad = error.mT @ inputs
        if bias:
            bias[0].grad = error.sum(1)
        match_gradient_strides(self.optimizer)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return list(loss.unbind(0)), outputs[-1]


def stacked(blocks: Sequence[Block]) -> list[Block]:
    """The same blocks, of which equal neighbours stand in a `StackedBlock`; heads need not be built yet."""
    found: list[Block] = []
    for likeness, run in groupby(blocks, _likeness):
        equal = list(run)
        found += [StackedBlock(equal)] if likeness is not None and len(equal) > 1 else equal
    return found


def _likeness(block: Block) -> str | None:
    """What blocks must share to be stacked; None: it cannot be."""
    layers = list(block.body) if isinstance(block.body, nn.Sequential) else []
    match layers:
        case [linear, activation] if type(linear) is nn.Linear and type(activation) in BACKWARD:
            square = linear.in_features == linear.out_features
            free = all(p.requires_grad for p in linear.parameters())
            plain = type(block.loss) is LocalCrossEntropy and block.loss.head is None
            alone = block.front is None and is_plain(linear)
            return str(layers) if square and free and plain and alone else None
    return None
