"""`Block`: a body and the local loss that trains it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from bpfree._rows import Rows
from bpfree.losses import LocalLoss
from bpfree.nn._closed_form import body_gradients
from bpfree.nn.in_place import in_place, overwriting
from bpfree.nn.layout import lay_out_gradients
from bpfree.nn.weights import feature_axis


class Block(nn.Module):
    """A body, the local loss that trains it, and the optimizer that takes the step.

    The body is a front and a learned part. The front is fixed: no gradient enters it, no optimizer holds its
    parameters, and what it answers may be cached. Most blocks have none.

    Args:
        body: The learned part, ``[rows, ...] -> [rows, ...]``.
        loss: The objective.
        front: The fixed part, in front of the body.
        gradients: ``"autograd"``, or ``"analytic"`` for the closed form: then no autograd takes part.
        inner_steps: Steps to take on each answer of the front. With a number given, what goes up the wire is
            the output after them; by default one step is taken, and the output before it goes up.
    """

    #: Whether a step takes a gradient back through the body.
    backward: ClassVar[bool] = True
    optimizer: torch.optim.Optimizer | None = None
    inner_steps: int | None = None
    #: Set while the block trains.
    relus: Sequence[nn.ReLU] = ()
    #: Modules that were handed over frozen and in evaluation mode, see `hold`.
    held: Sequence[nn.Module] = ()

    def __init__(
        self,
        body: nn.Module,
        loss: LocalLoss,
        front: nn.Module | None = None,
        gradients: str = "autograd",
        inner_steps: int | None = None,
    ) -> None:
        super().__init__()
        self.front, self.body, self.loss = front, body, loss
        self.gradients, self.inner_steps = gradients, inner_steps
        self._objective: Any = self.objective

    @property
    def losses(self) -> list[LocalLoss]:
        """The local losses inside, one for each of `outputs`."""
        return [self.loss]

    def build(self, rows: Rows, n_classes: int) -> Tensor:
        """Let the loss create what depends on shapes; returns the block's output for ``rows``."""
        seen = self.seen(rows)
        for loss, output in seen:
            loss.build(output, n_classes)
        return seen[-1][1]

    def seen(self, rows: Rows) -> list[tuple[LocalLoss, Tensor]]:
        """Each loss inside with the output for ``rows`` that it is to be built for, bottom first."""
        output = self(self.concat_feedback(rows, None))
        parts = nn.ModuleList([m for m in (self.front, self.body) if m is not None])
        self.loss.feature_axis = feature_axis(parts, output)
        return [(self.loss, output)]

    def concat_feedback(self, inputs: Rows, feedback: Tensor | None) -> Rows:
        """The input of a body that reads feedback from the block above too; here ``inputs``."""
        return inputs

    def next_input(self, inputs: Rows, output: Tensor | None = None) -> Rows:
        """The input of the block above: ``output``, or the output for ``inputs`` if it is not given."""
        return self(inputs) if output is None else output

    def run_front(self, rows: Rows) -> Rows:
        """What the front answers: the input of the learned part, a constant of the input."""
        if self.front is None:
            return rows
        with torch.no_grad():
            answer = self.front(rows)
        # A front of anyone's making may have opened a graph of its own.
        return answer.detach() if isinstance(answer, Tensor) else answer

    def forward(self, rows: Rows) -> Tensor:
        return self.body(self.run_front(rows))  # type: ignore[no-any-return]

    def outputs(self, rows: Rows) -> list[Tensor]:
        """The outputs for readouts, in order; the last goes to the block above."""
        return [self(rows)]

    def objective(self, sensed: Rows, target: Tensor, lesson: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """The loss of every `LocalLoss` inside, and the output, for an input that the front has seen."""
        output = self.body(sensed)
        return [self.loss(output, target, lesson)], output

    def total(self, losses: Sequence[Tensor]) -> Tensor:
        """What is differentiated, of the losses that `objective` gave."""
        return losses[0]

    def train_step(
        self, inputs: Rows, target: Tensor, feedback: Tensor | None, *, front_done: bool, send_up: bool
    ) -> tuple[list[Tensor], Tensor, Rows | None]:
        """Take one training step.

        Args:
            inputs: The block's input, ``[rows, ...]``.
            target: ``[rows]``.
            feedback: The feedback from the block above.
            front_done: Whether ``inputs`` is the front's output.
            send_up: Whether the block above needs an input.

        Returns:
            The losses and the output, detached, and the input of the block above, or None.
        """
        losses, output = self.update(inputs if front_done else self.run_front(inputs), target, feedback)
        above = self.loss.upward(output)
        for loss in self.losses:
            loss.memory = loss.remembered(output)
        return losses, output, self.next_input(inputs, above) if send_up else None

    def update(
        self, sensed: Rows, target: Tensor, lesson: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Take one step, or the inner steps, and free what they needed.

        Args:
            sensed: What the front answered to the rows below, ``[rows, ...]``, detached.
            target: ``[rows]``.
            lesson: What the loss made of the message from above.

        Returns:
            The losses before the first step, and the output to be sent up; all detached.
        """
        if self.inner_steps is None:
            return self._step(sensed, target, lesson)
        first, _ = self._step(sensed, target, lesson)
        for _ in range(1, self.inner_steps):
            self._step(sensed, target, lesson)
        with torch.no_grad():
            return first, self.body(sensed)

    def _step(self, sensed: Rows, target: Tensor, lesson: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """One step; the losses and the output before it, detached."""
        assert self.optimizer is not None
        if self.gradients == "analytic":
            with torch.no_grad():
                with in_place(self.relus):
                    output = self.body(sensed)
                loss, error = self.loss.output_gradient(output, target, lesson)
                if error is not None:
                    assert isinstance(sensed, Tensor)
                    body_gradients(self.body, sensed, output, error)
                lay_out_gradients(self.optimizer)
            losses = [loss]
        else:
            with in_place(self.relus):
                losses, output = self._objective(sensed, target, lesson)
            total = self.total(losses)
            # A block may be frozen, and have no head that learns.
            if total.requires_grad:
                # Each product's gradient has the precision that the product had.
                with torch.autocast(target.device.type, enabled=False):
                    total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return [loss.detach() for loss in losses], output.detach()

    def compile(self, backend: str) -> None:
        """Compile the block's forward pass and loss by `torch.compile`."""
        self._objective = torch.compile(self.objective, backend=backend)

    def __getstate__(self) -> dict[str, Any]:
        """All but the compiled function, which is bound to this block's weights and cannot be pickled."""
        return {key: value for key, value in self.__dict__.items() if key != "_objective"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._objective = self.objective

    def train(self, mode: bool = True) -> Block:
        """Training mode for the body and the loss, but not for what is `held`.

        The front is fixed and stays in evaluation mode.
        """
        super().train(mode)
        if self.front is not None:
            self.front.eval()
        for module in self.held:
            if not _learns(module):
                module.eval()
        self.relus = self._overwriting() if mode else ()
        return self

    def hold(self) -> None:
        """Keep in evaluation mode, from now on, what is in it now and frozen.

        That is a module with parameters, all of them frozen, with all that is inside; a normalization without
        parameters beside layers in training mode; and the whole body, front or head, with layers that have no
        parameters, if that holds for every module in it that has some.
        """
        parts = (self.front, self.body, *self.loss.children())
        self.held = [m for part in parts if part is not None for m in _still(part)]

    def _overwriting(self) -> list[nn.ReLU]:
        return overwriting(self.body)

    def trainable(self) -> list[nn.Parameter]:
        """The parameters that the block's optimizer moves: not the front's, which are left as they came."""
        fixed = {id(p) for p in self.front.parameters()} if self.front is not None else set()
        return [p for p in self.parameters() if p.requires_grad and id(p) not in fixed]


def _learns(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def _still(part: nn.Module) -> list[nn.Module]:
    """The modules of ``part`` in evaluation mode and frozen; ``part`` alone if all are that can be."""
    own = [m for m in part.modules() if m._parameters]
    if own and not any(m.training for m in own) and not _learns(part):
        return [part]
    having = (m for m in part.modules() if next(m.parameters(), None) is not None)
    held = [m for m in having if not m.training and not _learns(m)]
    if any(m.training for m in part.modules()):
        # Beside layers in training mode, a normalization that has statistics alone was set so on purpose.
        held += [m for m in part.modules() if isinstance(m, _NormBase) and not m.affine and not m.training]
    return held


def descend(blocks: Sequence[Block], target: Tensor | None = None) -> list[Tensor | None]:
    """Send the teaching messages down the wire; returns each block's lesson, bottom first.

    Args:
        blocks: Bottom first.
        target: What comes to the top block as its message, where targets are more than labels.
    """
    return send_down(blocks, target)[0]


def send_down(blocks: Sequence[Block], message: Tensor | None) -> tuple[list[Tensor | None], Tensor | None]:
    """`descend`, and the message that the lowest block sends further down, detached."""
    lessons: list[Tensor | None] = []
    for block in reversed(blocks):
        # A block with analytic gradients keeps nothing for a backward pass, on this wire either.
        with torch.set_grad_enabled(block.gradients == "autograd" and torch.is_grad_enabled()):
            lesson, below = block.loss.teach(message)
        lessons.append(lesson)
        message = None if below is None else below.detach()
    return lessons[::-1], message
