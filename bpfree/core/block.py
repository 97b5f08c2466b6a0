"""`Block`: a body, its local loss, and the rule that computes its gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree._renamed import warn_renamed
from bpfree._rows import Rows
from bpfree.core.frozen import frozen_modules, is_trainable
from bpfree.core.update_rules import (
    AnyRule,
    Autograd,
    ClosedFormGradient,
    Objective,
    OnePassSolve,
    set_gradients,
)
from bpfree.losses import BlockLoss, FeedbackLoss, LocalLoss, OnePassLoss, StatefulFeedbackLoss
from bpfree.nn.inplace import overwritable_relus
from bpfree.nn.weights import feature_axis

#: A loss, the output that it is computed from, and its feedback.
LossInput = tuple[LocalLoss, Tensor, Tensor | None]


class BaseBlock(nn.Module, ABC):
    """The interface of a block with one body or several.

    Attributes:
        rule: The rule that computes the gradients.
        optimizer: The optimizer of the block, set by the trainer.
        front: A fixed module before the body, or None. It has no gradient, no optimizer updates it, and its
            output can be cached.
        loss: The loss of the highest part. It receives the feedback from the block above.
        detach: Whether activations are detached between the parts.
        overwriting: ReLUs that can overwrite their input, set in training mode.
    """

    rule: AnyRule
    loss: LocalLoss
    detach: bool = False
    optimizer: torch.optim.Optimizer | None = None
    front: nn.Module | None
    overwriting: Sequence[nn.ReLU] = ()

    # ---- the blocks inside -----------------------------------------------------------------------------

    @property
    @abstractmethod
    def parts(self) -> list[Block]:
        """The blocks with one loss each, bottom first: inner blocks, or only the block itself."""

    @property
    def losses(self) -> list[LocalLoss]:
        """The local losses, bottom first, one for each of `outputs`."""
        return [part.loss for part in self.parts]

    # ---- the forward pass ------------------------------------------------------------------------------

    def run_front(self, inputs: Rows) -> Rows:
        """Compute the output of the front, detached, which is the input of the body."""
        if self.front is None:
            return inputs
        with torch.no_grad():
            output = self.front(inputs)
        # The front of a user can enable gradients.
        return output.detach() if isinstance(output, Tensor) else output

    @abstractmethod
    def forward(self, inputs: Rows) -> Tensor:
        """Compute the output, ``[rows, ...]``."""

    def evaluate(self, inputs: Rows) -> tuple[list[Tensor], Rows]:
        """Compute `outputs` and the input of the block above."""
        outputs = self.outputs(inputs)
        return outputs, outputs[-1]

    @abstractmethod
    def body_output(self, front_output: Rows) -> Tensor:
        """Compute the output from the output of the front."""

    def outputs(self, inputs: Rows) -> list[Tensor]:
        """Compute the outputs that readouts receive, one for each loss, bottom first."""
        return [self(inputs)]

    def next_input(self, inputs: Rows, output: Tensor | None = None) -> Rows:
        """Compute the input of the block above.

        Args:
            inputs: The input of this block.
            output: The output of this block, if it has been computed.
        """
        return self(inputs) if output is None else output

    def concat_feedback(self, inputs: Rows, feedback: Tensor | None) -> Rows:
        """Concatenate feedback to the inputs, if the block uses it as an input; by default a no-op."""
        return inputs

    # ---- training --------------------------------------------------------------------------------------

    @abstractmethod
    def loss_inputs(self, outputs: list[Tensor], target: Tensor, feedback: Tensor | None) -> list[LossInput]:
        """Return each loss with its arguments.

        Args:
            outputs: The result of `outputs`.
            target: ``[rows]``.
            feedback: The feedback of the block.
        """

    @abstractmethod
    def objective(self, front_output: Rows, target: Tensor, feedback: Tensor | None) -> Objective:
        """Compute the losses and the output, with their autograd graphs."""

    def train_step(
        self,
        inputs: Rows,
        target: Tensor,
        feedback: Tensor | None,
        *,
        front_done: bool = False,
        send_up: bool = True,
    ) -> tuple[list[Tensor], Tensor, Rows | None]:
        """Update the block on one batch, and free the activations.

        Args:
            inputs: ``[rows, ...]``, detached.
            target: ``[rows]``.
            feedback: The feedback of the block.
            front_done: Whether ``inputs`` are the output of the front.
            send_up: Whether there is a block above, which needs an input.

        Returns:
            The losses and the output before the update, and the input of the block above; all detached.
        """
        if not front_done and self.front is not None:
            inputs = self.run_front(inputs)
        losses, output = self.update(inputs, target, feedback)
        return losses, output, output

    def update(
        self, front_output: Rows, target: Tensor, feedback: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Compute the gradients and call the optimizer.

        Returns:
            The losses and the output before the update, detached.
        """
        optimizer = self.optimizer
        assert optimizer is not None
        losses, output, gradients = self.rule.gradients(self, front_output, target, feedback)
        if gradients:
            set_gradients(gradients)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return losses, output

    @abstractmethod
    def probe(self, inputs: Rows) -> list[tuple[LocalLoss, Tensor]]:
        """Return each loss with its block's output for ``inputs``, for `LocalLoss.build`, bottom first."""

    def build(self, inputs: Rows, n_classes: int) -> Tensor:
        """Build the losses for the shapes of the outputs; return the output for ``inputs``."""
        probes = self.probe(inputs)
        for loss, output in probes:
            loss.build(output, n_classes)
        return probes[-1][1]

    # ---- parameters and modes --------------------------------------------------------------------------

    @abstractmethod
    def learned_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that require a gradient, without those of fronts."""

    def trainable(self) -> list[nn.Parameter]:
        """Return the parameters that the optimizer of the block updates."""
        return self.rule.parameters(self)

    def record_frozen(self) -> None:
        """Record the modules that are frozen and in evaluation mode; `train` will not change their mode."""
        for part in self.parts:
            part.record_frozen()

    def compile(self, backend: str) -> None:
        """Compile the forward pass and the loss by `torch.compile`."""
        # The attribute of the instance replaces the method, at no cost for blocks that are not compiled.
        self.__dict__["objective"] = torch.compile(self.objective, backend=backend)

    def __getstate__(self) -> dict[str, object]:
        """Omit the compiled function, which is bound to the weights of this block and cannot be pickled."""
        return {key: value for key, value in self.__dict__.items() if key != "objective"}


class Block(BaseBlock):
    """A body, its local loss, and the rule that computes its gradients.

    Args:
        body: The trainable layers, ``[rows, ...] -> [rows, ...]``.
        loss: The local loss of the output.
        front: Fixed layers before the body.
        rule: The rule that computes gradients; by default `Autograd`, or `OnePassSolve` for a `OnePassLoss`.
        gradients: Deprecated, use ``rule``: ``"autograd"`` or ``"analytic"``.

    Raises:
        BadValue: If ``gradients`` is unknown.
    """

    #: Modules that stay in evaluation mode, see `record_frozen`.
    frozen: Sequence[nn.Module] = ()

    def __init__(
        self,
        body: nn.Module,
        loss: LocalLoss,
        front: nn.Module | None = None,
        rule: AnyRule | None = None,
        gradients: str | None = None,
    ) -> None:
        super().__init__()
        self.front, self.body, self.loss = front, body, loss
        rule_name = rule if isinstance(rule, str) else gradients
        if rule_name is not None:
            rule = _rule_from_name(rule_name, loss)
        if rule is None:
            rule = OnePassSolve() if isinstance(loss, OnePassLoss) else Autograd()
        self.rule = rule
        self._stateful = isinstance(loss, StatefulFeedbackLoss)
        self._uses_input = isinstance(loss, BlockLoss)

    @property
    def parts(self) -> list[Block]:
        return [self]

    def forward(self, inputs: Rows) -> Tensor:
        output: Tensor = self.body(inputs if self.front is None else self.run_front(inputs))
        return output

    def evaluate(self, inputs: Rows) -> tuple[list[Tensor], Rows]:
        output = self(inputs)
        return [output], output

    def body_output(self, front_output: Rows) -> Tensor:
        output: Tensor = self.body(front_output)
        return output

    def loss_inputs(self, outputs: list[Tensor], target: Tensor, feedback: Tensor | None) -> list[LossInput]:
        return [(self.loss, outputs[0], feedback)]

    def objective(self, front_output: Rows, target: Tensor, feedback: Tensor | None) -> Objective:
        output = self.body(front_output)
        if self._uses_input:
            loss = self._block_loss(front_output, output, target, feedback)
        else:
            loss = self.loss(output, target, feedback)
        return Objective([loss], loss, output)

    def loss_value(self, inputs: Rows, output: Tensor, target: Tensor, feedback: Tensor | None) -> Tensor:
        """The loss, given the block's input and its output."""
        if self._uses_input:
            return self._block_loss(self.run_front(inputs), output, target, feedback)
        value: Tensor = self.loss(output, target, feedback)
        return value

    def _block_loss(
        self, front_output: Rows, output: Tensor, target: Tensor, feedback: Tensor | None
    ) -> Tensor:
        assert isinstance(self.loss, BlockLoss)
        assert isinstance(front_output, Tensor)
        return self.loss.block_loss(self.body, front_output, output, target, feedback)

    def train_step(
        self,
        inputs: Rows,
        target: Tensor,
        feedback: Tensor | None,
        *,
        front_done: bool = False,
        send_up: bool = True,
    ) -> tuple[list[Tensor], Tensor, Rows | None]:
        if not front_done and self.front is not None:
            inputs = self.run_front(inputs)
        losses, output = self.update(inputs, target, feedback)
        return losses, output, self.advance_state(output) if self._stateful else output

    def advance_state(self, output: Tensor) -> Tensor:
        """Update the state of a `StatefulFeedbackLoss`; return the input of the block above."""
        assert isinstance(self.loss, StatefulFeedbackLoss)
        passed_up = self.loss.passed_up(output)
        self.loss.state = self.loss.next_state(output)
        return passed_up

    def probe(self, inputs: Rows) -> list[tuple[LocalLoss, Tensor]]:
        output = self(self.concat_feedback(inputs, None))
        parts = nn.ModuleList([m for m in (self.front, self.body) if m is not None])
        self.loss.feature_axis = feature_axis(parts, output)
        return [(self.loss, output)]

    def learned_parameters(self) -> list[nn.Parameter]:
        front = set() if self.front is None else {id(p) for p in self.front.parameters()}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in front]

    def train(self, mode: bool = True) -> Block:
        """Set the mode of the body and the loss, except for modules in `frozen`.

        The front stays in evaluation mode.
        """
        super().train(mode)
        if self.front is not None:
            self.front.eval()
        for module in self.frozen:
            if not is_trainable(module):
                module.eval()
        self.overwriting = overwritable_relus(self.body) if mode else ()
        return self

    def record_frozen(self) -> None:
        """Record the modules that are frozen and in evaluation mode; `train` will not change their mode.

        These are modules with parameters, all of which are frozen, and normalization layers without
        parameters in a network that has layers in training mode. If all modules with parameters of the body,
        front or head are frozen and in evaluation mode, so are its layers without parameters.
        """
        parts = (self.front, self.body, *self.loss.children())
        self.frozen = [m for part in parts if part is not None for m in frozen_modules(part)]


def _rule_from_name(gradients: str, loss: LocalLoss) -> AnyRule:
    """Return the rule for the argument ``gradients`` of version 0.1."""
    if gradients not in ("autograd", "analytic"):
        raise BadValue(f"gradients = {gradients!r}: expected 'autograd' or 'analytic'")
    rule: AnyRule = Autograd() if gradients == "autograd" else ClosedFormGradient()
    rule = OnePassSolve() if isinstance(loss, OnePassLoss) else rule
    warn_renamed(f"Block(gradients={gradients!r})", f"Block(rule=bpfree.{rule})", stacklevel=4)
    return rule


def send_feedback(
    blocks: Sequence[BaseBlock], message: Tensor | None = None
) -> tuple[list[Tensor | None], Tensor | None]:
    """Send feedback from the top block to the bottom block.

    Args:
        blocks: Bottom first.
        message: The message for the top block.

    Returns:
        The feedback of each block, bottom first, and the message of the lowest block for the block below it,
        detached.
    """
    feedback: list[Tensor | None] = []
    for block in reversed(blocks):
        loss, block_feedback = block.loss, None
        if isinstance(loss, FeedbackLoss):
            # A rule without autograd does not need the graph of the feedback.
            with torch.set_grad_enabled(block.rule.autograd and torch.is_grad_enabled()):
                block_feedback, message = loss.make_feedback(message)
            message = None if message is None else message.detach()
        else:
            message = None
        feedback.append(block_feedback)
    return feedback[::-1], message
