"""`Block`: a body, the local loss that trains it, and the rule that makes its gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree._renamed import warn_renamed
from bpfree._rows import Rows
from bpfree._types import JsonObject
from bpfree.core.frozen import frozen_modules, learns
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

#: A loss with the output that it is built for, or computed of, and its feedback.
LossInput = tuple[LocalLoss, Tensor, Tensor | None]


class BaseBlock(nn.Module, ABC):
    """What the engine needs of a block, whether it holds one body or several.

    Attributes:
        rule: How its gradients are made.
        optimizer: Set by the trainer.
        front: A fixed module in front of the body. No gradient enters it, no optimizer updates it, and its
            output can be cached. None for most blocks.
        loss: The loss of the highest part. It receives feedback from the block above and sends it down.
        detach: Whether no gradient passes between the parts.
        overwriting: ReLUs that may overwrite their input. Set in training mode.
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
        """The blocks with one loss each, bottom first: the block itself, if it holds no others."""

    @property
    def losses(self) -> list[LocalLoss]:
        """The local losses, bottom first, one for each of `outputs`."""
        return [part.loss for part in self.parts]

    # ---- the forward pass ------------------------------------------------------------------------------

    def run_front(self, inputs: Rows) -> Rows:
        """The output of the front, detached: the input of the body."""
        if self.front is None:
            return inputs
        with torch.no_grad():
            output = self.front(inputs)
        # A user's front may enable gradients by itself.
        return output.detach() if isinstance(output, Tensor) else output

    @abstractmethod
    def forward(self, inputs: Rows) -> Tensor:
        """The output, ``[rows, ...]``."""

    def evaluate(self, inputs: Rows) -> tuple[list[Tensor], Rows]:
        """`outputs`, and the input of the block above."""
        outputs = self.outputs(inputs)
        return outputs, outputs[-1]

    @abstractmethod
    def body_output(self, front_output: Rows) -> Tensor:
        """The output, given that of the front."""

    def outputs(self, inputs: Rows) -> list[Tensor]:
        """The outputs that readouts receive, one for each loss, bottom first."""
        return [self(inputs)]

    def next_input(self, inputs: Rows, output: Tensor | None = None) -> Rows:
        """The input of the block above.

        Args:
            inputs: The input of this block.
            output: Its output, if it has been computed.
        """
        return self(inputs) if output is None else output

    def concat_feedback(self, inputs: Rows, feedback: Tensor | None) -> Rows:
        """The inputs with the feedback concatenated, for a block that reads both. Here: the inputs."""
        return inputs

    # ---- training --------------------------------------------------------------------------------------

    @abstractmethod
    def loss_inputs(self, outputs: list[Tensor], target: Tensor, feedback: Tensor | None) -> list[LossInput]:
        """The arguments of each loss.

        Args:
            outputs: As `outputs` returns them.
            target: ``[rows]``.
            feedback: The block's own feedback.
        """

    @abstractmethod
    def objective(self, front_output: Rows, target: Tensor, feedback: Tensor | None) -> Objective:
        """The losses and the output, with their graphs."""

    def train_step(
        self,
        inputs: Rows,
        target: Tensor,
        feedback: Tensor | None,
        *,
        front_done: bool = False,
        send_up: bool = True,
    ) -> tuple[list[Tensor], Tensor, Rows | None]:
        """Update the block on one batch, and free what that needed.

        Args:
            inputs: ``[rows, ...]``, detached.
            target: ``[rows]``.
            feedback: The block's own feedback.
            front_done: Whether ``inputs`` are the output of the front.
            send_up: Whether a block above needs its input.

        Returns:
            The losses and the output before the step, and the input of the block above; all detached.
        """
        if not front_done and self.front is not None:
            inputs = self.run_front(inputs)
        losses, output = self.update(inputs, target, feedback)
        return losses, output, output

    def update(
        self, front_output: Rows, target: Tensor, feedback: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Make the gradients and take the optimizer's step.

        Returns:
            The losses and the output before the step, detached.
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
        """Each loss with the output for ``inputs`` that it will be built for, bottom first."""

    def build(self, inputs: Rows, n_classes: int) -> Tensor:
        """Let the losses create what depends on shapes; returns the output for ``inputs``."""
        probes = self.probe(inputs)
        for loss, output in probes:
            loss.build(output, n_classes)
        return probes[-1][1]

    # ---- parameters and modes --------------------------------------------------------------------------

    @abstractmethod
    def learned_parameters(self) -> list[nn.Parameter]:
        """The parameters that are not frozen, without those of fronts."""

    def trainable(self) -> list[nn.Parameter]:
        """The parameters that the block's optimizer updates."""
        return self.rule.parameters(self)

    def hold_frozen(self) -> None:
        """Keep in evaluation mode, from now on, the modules that are frozen and in evaluation mode now."""
        for part in self.parts:
            part.hold_frozen()

    def compile(self, backend: str) -> None:
        """Compile the forward pass and the loss by `torch.compile`."""
        # An attribute of the instance is found before the method, and costs no call where there is none.
        self.__dict__["objective"] = torch.compile(self.objective, backend=backend)

    def __getstate__(self) -> JsonObject:
        """All but the compiled function, which is bound to this block's weights and cannot be pickled."""
        return {key: value for key, value in self.__dict__.items() if key != "objective"}


class Block(BaseBlock):
    """A body, the local loss that trains it, and the rule that makes its gradients.

    Args:
        body: The learned part, ``[rows, ...] -> [rows, ...]``.
        loss: The objective.
        front: The fixed part, in front of the body.
        rule: How gradients are made; by default `Autograd`, or `OnePassSolve` for a `OnePassLoss`.
        gradients: Old name: ``"autograd"`` or ``"analytic"``.
    """

    #: Modules that stay in evaluation mode, see `hold_frozen`.
    held: Sequence[nn.Module] = ()

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
        given = rule if isinstance(rule, str) else gradients
        if given is not None:
            rule = _rule_of(given, loss)
        if rule is None:
            rule = OnePassSolve() if isinstance(loss, OnePassLoss) else Autograd()
        self.rule = rule
        self._stateful = isinstance(loss, StatefulFeedbackLoss)
        self._reads_input = isinstance(loss, BlockLoss)

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
        if self._reads_input:
            loss = self._block_loss(front_output, output, target, feedback)
        else:
            loss = self.loss(output, target, feedback)
        return Objective([loss], loss, output)

    def loss_value(self, inputs: Rows, output: Tensor, target: Tensor, feedback: Tensor | None) -> Tensor:
        """The loss, given the block's input and its output."""
        if self._reads_input:
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
        """Let a `StatefulFeedbackLoss` take its next state; returns what the block above receives."""
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
        fixed = set() if self.front is None else {id(p) for p in self.front.parameters()}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in fixed]

    def train(self, mode: bool = True) -> Block:
        """Set training mode for the body and the loss, except for modules that are held.

        The front stays in evaluation mode.
        """
        super().train(mode)
        if self.front is not None:
            self.front.eval()
        for module in self.held:
            if not learns(module):
                module.eval()
        self.overwriting = overwritable_relus(self.body) if mode else ()
        return self

    def hold_frozen(self) -> None:
        """Keep in evaluation mode, from now on, what is frozen and in evaluation mode now.

        These are: a module with parameters, all of them frozen, with everything inside; a normalization
        without parameters beside layers in training mode; and the whole body, front or head, with layers that
        have no parameters, if this holds for every module in it that has some.
        """
        parts = (self.front, self.body, *self.loss.children())
        self.held = [m for part in parts if part is not None for m in frozen_modules(part)]


def _rule_of(gradients: str, loss: LocalLoss) -> AnyRule:
    """The rule that the first release called ``gradients``."""
    if gradients not in ("autograd", "analytic"):
        raise BadValue(f"gradients = {gradients!r}: expected 'autograd' or 'analytic'")
    rule: AnyRule = Autograd() if gradients == "autograd" else ClosedFormGradient()
    rule = OnePassSolve() if isinstance(loss, OnePassLoss) else rule
    warn_renamed(f"Block(gradients={gradients!r})", f"Block(rule=bpfree.{rule})", stacklevel=4)
    return rule


def send_feedback(
    blocks: Sequence[BaseBlock], message: Tensor | None = None
) -> tuple[list[Tensor | None], Tensor | None]:
    """Send feedback from the top block to the bottom one.

    Args:
        blocks: Bottom first.
        message: The message for the top block.

    Returns:
        Each block's own feedback, bottom first, and the message that the lowest block sends down, detached.
    """
    feedback: list[Tensor | None] = []
    for block in reversed(blocks):
        loss, own = block.loss, None
        if isinstance(loss, FeedbackLoss):
            # A rule without autograd needs no graph of the feedback.
            with torch.set_grad_enabled(block.rule.autograd and torch.is_grad_enabled()):
                own, message = loss.make_feedback(message)
            message = None if message is None else message.detach()
        else:
            message = None
        feedback.append(own)
    return feedback[::-1], message
