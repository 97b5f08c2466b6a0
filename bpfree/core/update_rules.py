"""Update rules, which compute the gradients of a block. The engine applies the gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree._rows import Rows
from bpfree.losses import ClosedFormLoss, LocalLoss, OnePassLoss
from bpfree.nn._closed_form import BACKWARD, closed_form_layers, layer_gradients


class Objective(NamedTuple):
    """The result of a forward pass of a block, for `Autograd`.

    Attributes:
        losses: The value of each `LocalLoss` of the block, bottom first.
        total: The sum that is differentiated.
        output: The block's output.
    """

    losses: list[Tensor]
    total: Tensor
    output: Tensor


class Gradients(NamedTuple):
    """The result of an update rule for one batch.

    Attributes:
        losses: The value of each `LocalLoss` of the block before the update, detached.
        output: The block's output before the update, detached.
        gradients: Gradients by parameter; empty if autograd has accumulated them in ``.grad``.
    """

    losses: list[Tensor]
    output: Tensor
    gradients: Mapping[Tensor, Tensor]


class DifferentiableBlock(Protocol):
    """The interface of a block that `Autograd` uses."""

    #: ReLUs that can overwrite their input in training.
    overwriting: Sequence[nn.ReLU]

    @property
    def losses(self) -> list[LocalLoss]:
        """The local losses, bottom first."""

    def objective(self, front_output: Rows, target: Tensor, feedback: Tensor | None) -> Objective:
        """Compute the losses and the output, with their autograd graphs."""

    def learned_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that require a gradient, without those of the front."""


class SimpleBlock(DifferentiableBlock, Protocol):
    """A block with one body and one loss."""

    body: nn.Module

    @property
    def loss(self) -> LocalLoss:
        """The local loss."""


#: Outputs of a block and targets on validation data, in batches; None if there are none.
Validation = Iterable[tuple[Tensor, Tensor]] | None

BlockT_contra = TypeVar("BlockT_contra", contravariant=True)


class UpdateRule(ABC, Generic[BlockT_contra]):
    """Computes the gradients of a block.

    Subclasses implement `gradients`. They can use the input, the body and the output of the block.

    Attributes:
        autograd: Whether the rule uses autograd, so that feedback must have its autograd graph.
        through_body: Whether the rule needs the gradient of the loss with respect to the body's output, or a
            differentiable body.
        one_pass: Whether the rule needs exactly one pass over the training data.
    """

    autograd: ClassVar[bool] = False
    through_body: ClassVar[bool] = True
    one_pass: ClassVar[bool] = False

    @abstractmethod
    def gradients(
        self, block: BlockT_contra, front_output: Rows, target: Tensor, feedback: Tensor | None
    ) -> Gradients:
        """Compute the losses, the output and the gradients for one batch.

        Args:
            block: The block. Its parameters must have the same values before and after the call.
            front_output: The input of the body, ``[rows, ...]``, detached: the output of the front, if the
                block has one.
            target: ``[rows]``.
            feedback: The feedback of the block, see `bpfree.losses.FeedbackLoss`.
        """

    def parameters(self, block: BlockT_contra) -> list[nn.Parameter]:
        """Return the parameters that the optimizer of the block updates."""
        learned: list[nn.Parameter] = block.learned_parameters()  # type: ignore[attr-defined]
        return learned

    def check(self, block: BlockT_contra, label: str) -> None:
        """Check that the rule can train the block. Called before the first step.

        Args:
            block: The block.
            label: Name of the block, for the message.

        Raises:
            BadValue: If the rule cannot train the block.
        """

    def begin_epoch(self, block: BlockT_contra) -> None:
        """Called before the first step of an epoch, if `one_pass`."""

    def end_epoch(self, block: BlockT_contra, validation: Validation) -> None:
        """Called after the last step of an epoch, if `one_pass`.

        Args:
            block: The block.
            validation: As for `bpfree.losses.OnePassLoss.solve`.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


#: A rule for any kind of block; `UpdateRule.check` refuses a block that it cannot train.
AnyRule = UpdateRule[Any]


class Autograd(UpdateRule[DifferentiableBlock]):
    """Gradients by a backward pass inside the block."""

    autograd = True

    def gradients(
        self, block: DifferentiableBlock, front_output: Rows, target: Tensor, feedback: Tensor | None
    ) -> Gradients:
        relus = block.overwriting
        for relu in relus:
            relu.inplace = True
        try:
            losses, total, output = block.objective(front_output, target, feedback)
        finally:
            for relu in relus:
                relu.inplace = False
        # Nothing requires a gradient if the body is frozen and the head has no parameters.
        if total.requires_grad:
            if torch.is_autocast_enabled(target.device.type):
                # Autocast is for the forward pass; gradients have the dtype of the forward operations.
                with torch.autocast(target.device.type, enabled=False):
                    total.backward()
            else:
                total.backward()
        return Gradients([loss.detach() for loss in losses], output.detach(), {})

    def check(self, block: DifferentiableBlock, label: str) -> None:
        for loss in block.losses:
            if isinstance(loss, OnePassLoss):
                raise BadValue(f"{label}: {type(loss).__name__} has no gradient; use rule = OnePassSolve()")


#: A linear layer and its activation.
Layers = tuple[nn.Linear, nn.Module | None]


class ClosedFormGradient(UpdateRule[SimpleBlock]):
    """Gradients in closed form, for a body ``[Flatten] Linear [activation]`` and a `ClosedFormLoss`."""

    def __init__(self) -> None:
        self._cache: tuple[tuple[nn.Module | None, ...], Layers | None] | None = None

    def gradients(
        self, block: SimpleBlock, front_output: Rows, target: Tensor, feedback: Tensor | None
    ) -> Gradients:
        assert isinstance(front_output, Tensor)
        assert isinstance(block.loss, ClosedFormLoss)
        relus = block.overwriting
        with torch.no_grad():
            for relu in relus:
                relu.inplace = True
            try:
                output = block.body(front_output)
            finally:
                for relu in relus:
                    relu.inplace = False
            loss, error, gradients = block.loss.closed_form(output, target, feedback)
            if (layers := self._layers(block.body)) is not None:
                gradients |= layer_gradients(*layers, front_output, output, error)
        return Gradients([loss], output, gradients)

    def take_steps(
        self,
        block: SimpleBlock,
        front_output: Tensor,
        target: Tensor,
        feedback: Tensor | None,
        optimizer: torch.optim.Optimizer,
        steps: int,
    ) -> list[Tensor]:
        """Update the block several times on one input; return the losses before the first update.

        Equals ``steps`` calls of `gradients`, each with an optimizer step, in fewer Python calls.
        """
        assert isinstance(block.loss, ClosedFormLoss)
        body, closed_form, losses = block.body, block.loss.closed_form, list[Tensor]()
        layers, x = self._layers(body), front_output.flatten(1)
        for _ in range(steps):
            with torch.no_grad():
                output = body(front_output)
                loss, error, gradients = closed_form(output, target, feedback)
                if layers is not None:
                    linear, activation = layers
                    if activation is not None:
                        error = BACKWARD[type(activation)](activation, error, output.flatten(1))
                    if linear.weight.requires_grad:
                        gradients[linear.weight] = error.T @ x
                    if linear.bias is not None and linear.bias.requires_grad:
                        gradients[linear.bias] = error.sum(0)
                for parameter, gradient in gradients.items():
                    same = gradient.stride() == parameter.stride()
                    parameter.grad = gradient if same else torch.empty_like(parameter).copy_(gradient)
            optimizer.step()
            losses.append(loss)
        optimizer.zero_grad(set_to_none=True)
        return losses[:1]

    def _layers(self, body: nn.Module) -> Layers | None:
        """Return the layers of the body. They are cached until a module of the body is replaced."""
        modules = (body, *body._modules.values())
        if self._cache is None or self._cache[0] != modules:
            self._cache = (modules, closed_form_layers(body))
        layers = self._cache[1]
        if layers is not None and (layers[0]._forward_hooks or layers[0]._forward_pre_hooks):
            # Raises an error: the hook was added later.
            layers = closed_form_layers(body)
        return layers

    def check(self, block: SimpleBlock, label: str) -> None:
        loss = block.loss
        try:
            closed_form_layers(block.body)
            if not isinstance(loss, ClosedFormLoss):
                raise TypeError(f"{type(loss).__name__} has no closed-form gradient")
            loss.check_closed_form()
        except TypeError as error:
            raise BadValue(f"gradients = 'analytic': {label}: {error}; use 'autograd'") from None


class OnePassSolve(UpdateRule[SimpleBlock]):
    """No gradients: a `OnePassLoss` is minimized exactly after one pass over the training data."""

    through_body = False
    one_pass = True

    def gradients(
        self, block: SimpleBlock, front_output: Rows, target: Tensor, feedback: Tensor | None
    ) -> Gradients:
        assert isinstance(block.loss, OnePassLoss)
        with torch.no_grad():
            output = block.body(front_output)
            block.loss.accumulate(output, target)
            return Gradients([block.loss(output, target)], output, {})

    def check(self, block: SimpleBlock, label: str) -> None:
        if not isinstance(block.loss, OnePassLoss):
            raise BadValue(
                f"{label}: {type(block.loss).__name__} cannot be solved in one pass; use rule = Autograd()"
            )
        if any(p.requires_grad for p in block.body.parameters()):
            raise BadValue(
                f"{label}: {type(block.loss).__name__} is solved in one pass, without a gradient for the "
                "parameters of the body; pass the body as the front, or freeze its parameters"
            )

    def begin_epoch(self, block: SimpleBlock) -> None:
        assert isinstance(block.loss, OnePassLoss)
        block.loss.begin()

    def end_epoch(self, block: SimpleBlock, validation: Validation) -> None:
        assert isinstance(block.loss, OnePassLoss)
        block.loss.solve(validation)


class Perturbation(UpdateRule[SimpleBlock]):
    """Gradients estimated by simultaneous perturbation (Spall, IEEE TAC 37, 332, 1992).

    All parameters are changed by plus and minus a random sign vector times ``size``. The difference of the
    two losses is the slope in this direction.

    Args:
        size: Change of each value.
        directions: Number of random directions per step, whose estimates are averaged.
    """

    through_body = False

    def __init__(self, size: float = 1e-2, directions: int = 1) -> None:
        self.size, self.directions = size, directions

    @torch.no_grad()
    def gradients(
        self, block: SimpleBlock, front_output: Rows, target: Tensor, feedback: Tensor | None
    ) -> Gradients:
        weights = block.learned_parameters()
        before = [weight.detach().clone() for weight in weights]
        gradients: dict[Tensor, Tensor] = {weight: torch.zeros_like(weight) for weight in weights}
        losses: list[Tensor] = []
        try:
            for _ in range(self.directions):
                # The global random state was seeded for this step and block, see `bpfree.engine.step`.
                signs = [torch.randint(0, 2, w.shape, device=w.device).to(w.dtype) * 2 - 1 for w in weights]
                for side in (1, -1):
                    for weight, center, sign in zip(weights, before, signs, strict=True):
                        weight.copy_(center + side * self.size * sign)
                    output = block.body(front_output)
                    losses.append(block.loss(output, target))
                slope = (losses[-2] - losses[-1]) / (2 * self.size * self.directions)
                for weight, sign in zip(weights, signs, strict=True):
                    gradients[weight] += slope * sign
        finally:
            # Also if a device fails between two measurements.
            for weight, center in zip(weights, before, strict=True):
                weight.copy_(center)
        return Gradients([torch.stack(losses).mean()], output, gradients)

    def __repr__(self) -> str:
        return f"Perturbation(size={self.size}, directions={self.directions})"


def set_gradients(gradients: Mapping[Tensor, Tensor]) -> None:
    """Set ``.grad`` of each parameter, in the memory layout of the parameter, which fused optimizers need."""
    for parameter, gradient in gradients.items():
        if gradient.stride() == parameter.stride():
            parameter.grad = gradient
        else:
            parameter.grad = torch.empty_like(parameter, requires_grad=False).copy_(gradient)
