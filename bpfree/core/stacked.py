"""Equal blocks that are updated at once, with batched matrix products."""

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
    """The closed form of L neighboring blocks ``Linear(n, n), activation`` of Mono-Forward, computed at once.

    The outputs are computed one after another, without an autograd graph. The gradients of all blocks are
    computed together by batched products, and one optimizer updates all blocks. This is faster if the time of
    a step is dominated by kernel launches. Backpropagation cannot do this, because each layer needs the
    gradient of the layer above. The result equals `ClosedFormGradient` for each block.

    The weights of all blocks are stored in one tensor ``[L, ...]``, and so are the heads and the biases. The
    parameters of the layers are views of these tensors.

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
                f"gradients = 'stacked': {frozen[0]} is frozen, but stacked layers are updated together; "
                "unfreeze it, or use 'analytic'"
            )
        return list(self.stacks(block))

    def stacks(self, block: JointBlock) -> tuple[nn.Parameter, ...]:
        """Return weights ``[L, n, n]``, heads ``[L, C, n]`` and, if the layers have any, biases ``[L, n]``.

        Parameters that are no longer views, because they were copied, moved or replaced, become views again.
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
    """Return the blocks, with sequences of equal neighbors combined in a `JointBlock` with a `Stacked` rule.

    Args:
        blocks: Bottom first. Their losses need not be built.
    """
    result: list[BaseBlock] = []
    for key, run in groupby(blocks, _stacking_key):
        equal = list(run)
        if key is None or len(equal) == 1:
            result += equal
        else:
            result.append(JointBlock(equal, [1.0] * len(equal), detach=True, rule=Stacked()))
    return result


def _stacking_key(block: Block) -> str | None:
    """Return a key that is equal for blocks that can be stacked; None if the block cannot be stacked."""
    layers = list(block.body) if isinstance(block.body, nn.Sequential) else []
    match layers:
        case [linear, activation] if type(linear) is nn.Linear and type(activation) in BACKWARD:
            square = linear.in_features == linear.out_features
            trainable = all(p.requires_grad for p in linear.parameters())
            default_loss = type(block.loss) is LocalCrossEntropy and block.loss.head is None
            plain = block.front is None and is_plain(linear)
            return str(layers) if square and trainable and default_loss and plain else None
    return None
