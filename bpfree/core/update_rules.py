"""Update rules: how the gradients of a block are made. The engine applies them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree._rows import Rows
from bpfree.losses import ClosedFormLoss, LocalLoss, OnePassLoss
from bpfree.nn._closed_form import BACKWARD, closed_form_layers, layer_gradients


class Objective(NamedTuple):
    """What `Autograd` differentiates.

    Attributes:
        losses: The value of each `LocalLoss` inside a block, bottom first.
        total: The sum that is differentiated.
        output: The block's output.
    """

    losses: list[Tensor]
    total: Tensor
    output: Tensor


class Gradients(NamedTuple):
    """What an update rule returns for one batch.

    Attributes:
        losses: The loss of each `LocalLoss` inside the block, before the step, detached.
        output: The block's output before the step, detached.
        gradients: By parameter; empty if autograd has accumulated them in ``.grad``.
    """

    losses: list[Tensor]
    output: Tensor
    gradients: Mapping[Tensor, Tensor]


class DifferentiableBlock(Protocol):
    """What `Autograd` needs of a block."""

    #: ReLUs that may overwrite their input while the block is trained.
    overwriting: Sequence[nn.ReLU]

    @property
    def losses(self) -> list[LocalLoss]:
        """The losses inside, bottom first."""

    def objective(self, front_output: Rows, target: Tensor, feedback: Tensor | None) -> Objective:
        """The losses and the output, with their graphs."""

    def learned_parameters(self) -> list[nn.Parameter]:
        """The parameters that are not frozen, without those of the front."""


class SimpleBlock(DifferentiableBlock, Protocol):
    """A block with one body and one loss."""

    body: nn.Module

    @property
    def loss(self) -> LocalLoss:
        """The loss."""


BlockT_contra = TypeVar("BlockT_contra", contravariant=True)


class UpdateRule(ABC, Generic[BlockT_contra]):
    """How the gradients of a block are made.

    A rule of your own overrides `gradients`. It may use the input, the body and the output of the block.

    Attributes:
        autograd: Whether the rule differentiates by autograd, so that feedback must have its graph.
        through_body: Whether it needs the gradient with respect to the body's output, or the body itself to
            be differentiable.
        one_pass: Whether one pass over the training data is all that it needs.
    """

    autograd: ClassVar[bool] = False
    through_body: ClassVar[bool] = True
    one_pass: ClassVar[bool] = False

    @abstractmethod
    def gradients(
        self, block: BlockT_contra, front_output: Rows, target: Tensor, feedback: Tensor | None
    ) -> Gradients:
        """The losses, the output and the gradients for one batch.

        Args:
            block: The block. Its parameters are the same before and after the call.
            front_output: Input of the body, ``[rows, ...]``, detached: the output of the front, if there is
                one.
            target: ``[rows]``.
            feedback: The block's own feedback, see `bpfree.losses.FeedbackLoss`.
        """

    def parameters(self, block: BlockT_contra) -> list[nn.Parameter]:
        """The parameters that the block's optimizer updates."""
        learned: list[nn.Parameter] = block.learned_parameters()  # type: ignore[attr-defined]
        return learned

    def check(self, block: BlockT_contra, label: str) -> None:
        """Check, before the first step, that the rule can train the block.

        Raises:
            BadValue: If it cannot. ``label`` names the block.
        """

    def begin_epoch(self, block: BlockT_contra) -> None:
        """Called before the first step of an epoch, of a rule that needs one pass."""

    def end_epoch(self, block: BlockT_contra, validation: Any) -> None:
        """Called after the last step of an epoch, of a rule that needs one pass.

        Args:
            block: The block.
            validation: As for `bpfree.losses.OnePassLoss.solve`.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Autograd(UpdateRule[DifferentiableBlock]):
    """A backward pass inside the block."""

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
        # A block may be frozen, with a head that has nothing to learn.
        if total.requires_grad:
            if torch.is_autocast_enabled(target.device.type):
                # Each product's gradient has the precision that the product had.
                with torch.autocast(target.device.type, enabled=False):
                    total.backward()
            else:
                total.backward()
        return Gradients([loss.detach() for loss in losses], output.detach(), {})

    def check(self, block: DifferentiableBlock, label: str) -> None:
        for loss in block.losses:
            if isinstance(loss, OnePassLoss):
                raise BadValue(f"{label}: {type(loss).__name__} has no gradient; use rule = OnePassSolve()")


class ClosedFormGradient(UpdateRule[SimpleBlock]):
    """The closed form of the gradients of ``[Flatten] Linear [activation]`` under a `ClosedFormLoss`."""

    def __init__(self) -> None:
        self._found: tuple[tuple[Any, ...], tuple[nn.Linear, nn.Module | None] | None] | None = None

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
        """Take several steps on one input; returns the losses before the first.

        The same as as many calls of `gradients`, each with a step, in fewer Python calls.
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

    def _layers(self, body: nn.Module) -> tuple[nn.Linear, nn.Module | None] | None:
        """The layers of the body, found anew if a module of it has changed."""
        modules = (body, *body._modules.values())
        if self._found is None or self._found[0] != modules:
            self._found = (modules, closed_form_layers(body))
        layers = self._found[1]
        if layers is not None and (layers[0]._forward_hooks or layers[0]._forward_pre_hooks):
            # A hook that was added since is refused.
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
    """The exact minimum of a `OnePassLoss`, after one pass over the training data."""

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
            raise BadValue(f"{label}: {type(block.loss).__name__} is not solved in one pass; use Autograd()")
        if any(p.requires_grad for p in block.body.parameters()):
            raise BadValue(
                f"{label}: {type(block.loss).__name__} is solved in one pass and gives the body no gradient; "
                "pass the body as the front, or freeze its parameters"
            )

    def begin_epoch(self, block: SimpleBlock) -> None:
        assert isinstance(block.loss, OnePassLoss)
        block.loss.begin()

    def end_epoch(self, block: SimpleBlock, validation: Any) -> None:
        assert isinstance(block.loss, OnePassLoss)
        block.loss.solve(validation)


class Perturbation(UpdateRule[SimpleBlock]):
    """Simultaneous perturbation (Spall, IEEE TAC 37, 332, 1992): slopes from differences of the loss.

    All parameters move along a random sign vector; two evaluations of the loss give the slope along it.

    Args:
        size: How far each value is moved, up and down.
        directions: Random directions whose estimates are averaged in each step.
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
                # From the random stream of this step and block, see `bpfree.engine.step`.
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
            # A device may fail between two measurements.
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
