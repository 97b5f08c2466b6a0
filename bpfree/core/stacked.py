"""Equal blocks that are updated at once: one product for each block becomes one batched product for all."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree._rows import Rows
from bpfree.core.block import BaseBlock, Block
from bpfree.core.joint import JointBlock
from bpfree.core.update_rules import Gradients, UpdateRule
from bpfree.losses import LocalCrossEntropy
from bpfree.nn._closed_form import BACKWARD, FORWARD
from bpfree.nn.weights import is_plain


class Stacked(UpdateRule[JointBlock]):
    """The closed form of neighboring blocks ``Linear(n, n), activation`` under Mono-Forward, in one step.

    The outputs are computed one after another, without a graph. The gradients of all blocks are computed
    together, in batched products, and one optimizer updates all. This helps where a step is bound by the
    launching of operations. Backpropagation cannot do it, since each layer waits for the gradient of the one
    above. The result is that of the blocks' own closed forms.

    The weights of all blocks are one tensor ``[L, ...]`` of each kind, and the layers' parameters its views.

    Raises:
        BadValue: When the optimizer is created, if a layer is frozen.
    """

    def __init__(self) -> None:
        self._stacks: tuple[nn.Parameter, ...] = ()
        self._layers: tuple[list[Any], ...] = ()

    def parameters(self, block: JointBlock) -> list[nn.Parameter]:
        frozen = [name for name, p in block.named_parameters() if not p.requires_grad]
        if frozen:
            raise BadValue(
                f"gradients = 'stacked': {frozen[0]} is frozen, and stacked layers learn together; leave it "
                "free, or use 'analytic'"
            )
        return list(self.stacks(block))

    def stacks(self, block: JointBlock) -> tuple[nn.Parameter, ...]:
        """Weights ``[L, n, n]``, heads ``[L, C, n]`` and, if there are any, biases ``[L, n]``.

        Parameters that were copied, moved or replaced are views no more, and are made views again.
        """
        if not self._layers:
            parts: list[Any] = block.parts
            self._layers = ([part.body[0] for part in parts], [part.loss.linear for part in parts])
        layers, heads = self._layers
        kinds = [[layer.weight for layer in layers], [head.weight for head in heads]]
        kinds += [[layer.bias for layer in layers]] if layers[0].bias is not None else []
        if not self._stacks:
            self._stacks = tuple(nn.Parameter(torch.stack([p.detach() for p in kind])) for kind in kinds)
        for stack, kind in zip(self._stacks, kinds, strict=True):
            views = stack.unbind(0)
            if any(p.data_ptr() != view.data_ptr() for p, view in zip(kind, views, strict=True)):
                stack.data = torch.stack([p.detach() for p in kind])
                for parameter, view in zip(kind, stack.data.unbind(0), strict=True):
                    parameter.data = view
        return self._stacks

    @torch.no_grad()
    def gradients(
        self, block: JointBlock, front_output: Rows, target: Tensor, feedback: Tensor | None
    ) -> Gradients:
        assert isinstance(front_output, Tensor)
        weight, head, *bias = stacks = self.stacks(block)
        first: Any = block.parts[0]
        activation = first.body[1]
        kind = type(activation)
        rows = front_output.new_empty(len(weight) + 1, *front_output.shape)
        rows[0] = front_output
        inputs, outputs = rows[:-1], rows[1:]
        shifts = bias[0].unbind(0) if bias else [front_output.new_zeros(1)] * len(weight)
        layers = zip(inputs.unbind(0), outputs.unbind(0), weight.mT.unbind(0), shifts, strict=True)
        for below, above, transposed, shift in layers:
            FORWARD[kind](activation, torch.addmm(shift, below, transposed, out=above))
        losses, error = first.loss.score_gradient(outputs @ head.mT, target)
        gradients = [error.mT @ outputs]
        error = BACKWARD[kind](activation, error @ head, outputs)
        gradients.insert(0, error.mT @ inputs)
        if bias:
            gradients.append(error.sum(1))
        return Gradients(list(losses.unbind(0)), outputs[-1], dict(zip(stacks, gradients, strict=True)))


def stacked(blocks: Sequence[Block]) -> list[BaseBlock]:
    """The blocks, with runs of equal neighbors under a `Stacked` rule; heads need not be built yet."""
    result: list[BaseBlock] = []
    for key, run in groupby(blocks, _stacking_key):
        equal = list(run)
        if key is None or len(equal) == 1:
            result += equal
        else:
            result.append(JointBlock(equal, [1.0] * len(equal), detach=True, rule=Stacked()))
    return result


def _stacking_key(block: Block) -> str | None:
    """What blocks must have in common to be stacked; None: the block cannot be stacked."""
    layers = list(block.body) if isinstance(block.body, nn.Sequential) else []
    match layers:
        case [linear, activation] if type(linear) is nn.Linear and type(activation) in BACKWARD:
            square = linear.in_features == linear.out_features
            free = all(p.requires_grad for p in linear.parameters())
            plain = type(block.loss) is LocalCrossEntropy and block.loss.head is None
            alone = block.front is None and is_plain(linear)
            return str(layers) if square and free and plain and alone else None
    return None
