"""`Block` and `Cascade`: bodies joined by two wires, and nothing else crosses the wall between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from bpfree._errors import BadValue, BpfreeError
from bpfree._memory import check_memory
from bpfree._settings import did_you_mean
from bpfree.encodings import Encoding, LabelOverlay, Overlaid, put_beside
from bpfree.graph import Ends, Nodes
from bpfree.losses import LocalLoss
from bpfree.nn._closed_form import body_gradients
from bpfree.nn.inplace import overwritable_relus, overwrite_inputs
from bpfree.nn.layout import match_gradient_strides
from bpfree.nn.weights import feature_axis
from bpfree.readouts import Readout, make_readouts
from bpfree.sharing import check_objects

Rows = Tensor | Overlaid | Nodes


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
        upper: Width of the lesson that joins the states of nodes coming up, for a block that reads it in its
            body; None: the lesson is for the loss alone.
    """

    #: Whether a step takes a gradient back through the body.
    backward: ClassVar[bool] = True
    optimizer: torch.optim.Optimizer | None = None
    upper: int | None = None
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
        upper: int | None = None,
        inner_steps: int | None = None,
    ) -> None:
        super().__init__()
        self.front, self.body, self.loss = front, body, loss
        self.gradients, self.upper, self.inner_steps = gradients, upper, inner_steps
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
        output = self(self.join(rows, None))
        parts = nn.ModuleList([m for m in (self.front, self.body) if m is not None])
        self.loss.feature_axis = feature_axis(parts, output)
        return [(self.loss, output)]

    def join(self, rows: Rows, lesson: Tensor | None) -> Rows:
        """What came up with what came down beside it, for a block that reads both."""
        if not self.upper:
            return rows
        assert isinstance(rows, Nodes)
        states = rows.states[0]
        above = states.new_zeros(len(states), self.upper) if lesson is None else lesson.detach()
        return replace(rows, beside=above)

    def onward(self, rows: Rows, output: Tensor | None = None) -> Rows:
        """What goes up: the output for ``rows``, or the states of all nodes where they stand on a graph.

        Args:
            rows: What the block is fed.
            output: Its output, where that is of all of them; made here if it is not given.
        """
        if not isinstance(rows, Nodes):
            return self(rows) if output is None else output
        if output is None or rows.wanted is not None:
            output = self._of_all(rows.whole())
        return rows.up(output)

    @torch.no_grad()
    def _of_all(self, rows: Nodes) -> Tensor:
        """The output for all nodes; behind a front the learned part sees each row by itself."""
        sensed = self.sense(rows)
        if isinstance(sensed, Tensor):
            rows_of = sensed
            return rows.store.filled(len(rows_of), lambda at: self.body(rows_of[at]).unsqueeze(0))[0]
        output = self.body(sensed)
        return rows.store.filled(len(output), lambda at: output[None, at])[0]

    def sense(self, rows: Rows) -> Rows:
        """What the front answers: the input of the learned part, a constant of the input."""
        if self.front is None:
            return rows
        with torch.no_grad():
            answer = self.front(rows)
        # A front of anyone's making may have opened a graph of its own.
        return answer.detach() if isinstance(answer, Tensor) else answer

    def forward(self, rows: Rows) -> Tensor:
        return self.body(self.sense(rows))  # type: ignore[no-any-return]

    def outputs(self, rows: Rows) -> list[Tensor]:
        """The outputs that readouts may look at, in order; the last goes up, but for that of single nodes."""
        output = self(rows)
        return [Ends(output, rows.pairs)] if isinstance(rows, Nodes) and rows.pairs is not None else [output]  # type: ignore[list-item]

    def objective(self, sensed: Rows, target: Tensor, lesson: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """The loss of every `LocalLoss` inside, and the output, for an input that the front has seen."""
        output = self.body(sensed)
        return [self.loss(output, target, lesson)], output

    def total(self, losses: Sequence[Tensor]) -> Tensor:
        """What is differentiated, of the losses that `objective` gave."""
        return losses[0]

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
                with overwrite_inputs(self.relus):
                    output = self.body(sensed)
                loss, error = self.loss.output_gradient(output, target, lesson)
                if error is not None:
                    assert isinstance(sensed, Tensor)
                    body_gradients(self.body, sensed, output, error)
                match_gradient_strides(self.optimizer)
            losses = [loss]
        else:
            with overwrite_inputs(self.relus):
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
        return overwritable_relus(self.body)

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


def _check_value(loss: LocalLoss, value: Any) -> None:
    """Check what a loss has returned."""
    kind = type(loss).__name__
    if not isinstance(value, Tensor) or value.ndim:
        found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise BadValue(
            f"{kind}.forward returned {found}: expected a scalar tensor, such as the mean over rows"
        )
    if not value.requires_grad and not loss.one_pass:
        raise BadValue(f"{kind}.forward has no gradient: compute it from `output` without detach or item")


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


class Cascade(nn.Module):
    """Blocks in a row, the encoding that feeds the first, and the readouts that listen to all.

    Args:
        blocks: Bottom first.
        readouts: By name; the first is the prediction rule, the others are reported beside it.
        encoding: How labelled examples are shown to the first block.
        source: The module that the bodies were cut from and share their parameters with, if the first
            readout computes the same as it.
        sweeps: Which sweeps readouts listen to, from the first to before the second of the two numbers, where
            blocks read messages from above; (0, 1): one pass up, nothing comes down.

    Raises:
        BadValue: If one block, loss or readout object is given more than once.
    """

    def __init__(
        self,
        blocks: Iterable[Block],
        readouts: dict[str, Readout],
        encoding: Encoding | None = None,
        source: nn.Module | None = None,
        sweeps: tuple[int, int] = (0, 1),
    ) -> None:
        super().__init__()
        self.sweeps = sweeps
        self.blocks = nn.ModuleList(blocks)
        self.readouts = nn.ModuleDict(readouts)
        self.encoding = encoding or Encoding()
        # Not a submodule: its parameters are the bodies' own and must not stand in the state twice.
        self._source: tuple[nn.Module | None] = (source,)
        self.headline = next(iter(readouts))
        check_objects(self)

    def lead(self, readout: str) -> Cascade:
        """Make ``readout`` the prediction rule; returns the cascade.

        Raises:
            BadValue: If there is no readout of that name, nor a block.
        """
        if readout.startswith("block:") and readout not in self.readouts:
            self.readouts[readout] = make_readouts(readout, self.losses)[readout]
        if readout not in self.readouts:
            raise BadValue(f"readout = {readout!r}: unknown; {did_you_mean(readout, list(self.readouts))}")
        if readout != self.headline:
            self._source, self.headline = (None,), readout
            rest = {name: r for name, r in self.readouts.items() if name != readout}
            self.readouts = nn.ModuleDict({readout: self.readouts[readout]} | rest)
        return self

    @property
    def units(self) -> list[Block]:
        """The blocks, bottom first."""
        return list(self.blocks)  # type: ignore[arg-type]

    @property
    def losses(self) -> list[LocalLoss]:
        """The local losses of all blocks, bottom first."""
        return [loss for block in self.units for loss in block.losses]

    def memories(self) -> dict[str, Tensor]:
        """What the losses remember of the last step, by number."""
        return {str(k): loss.memory for k, loss in enumerate(self.losses) if loss.memory is not None}

    def remember(self, memories: Mapping[str, Tensor]) -> None:
        """Take up what `memories` gave; what is not there is forgotten."""
        for k, loss in enumerate(self.losses):
            loss.memory = memories.get(str(k))

    def readout(self, name: str) -> Readout:
        """The readout called ``name``."""
        readout = self.readouts[name]
        assert isinstance(readout, Readout)
        return readout

    def build(self, x: Tensor, n_classes: int, states: int = 2) -> None:
        """Create heads, thresholds and readouts for samples shaped like ``x [rows, ...]``.

        Args:
            x: The samples.
            n_classes: Number of classes.
            states: Values that the optimizer keeps for each parameter.

        Raises:
            BadValue: If memory cannot hold what is to be created, with its optimizer's state.
        """
        self.encoding.build(n_classes)
        if isinstance(self.encoding, LabelOverlay):
            self.encoding.place(x.shape[1:])
            if self.encoding.beside:
                self.units[0].body = put_beside(self.units[0].body, self.encoding.n_classes)
        with torch.no_grad():
            y = torch.zeros(len(x), dtype=torch.long, device=x.device)
            drawn = self.encoding.draw(
                y, torch.Generator(x.device), torch.zeros(len(x), n_classes, device=x.device)
            )
            rows: Rows
            rows, target = self.encoding.encode(x, y, drawn)
            seen: list[tuple[LocalLoss, Tensor]] = []
            for block in self.units:
                seen += block.seen(rows)
                output = None if isinstance(rows, Nodes) else seen[-1][1]
                rows = block.onward(block.join(rows, None), output)
            self._check_memory(seen, n_classes, states)
            for loss, output in seen:
                loss.build(output, n_classes)
            for readout in map(self.readout, self.readouts):
                readout.build(self.outputs(self.encoding.view(x, readout.view)), n_classes)
            if not self.encoding.whole:
                self._check_losses([output for _, output in seen], target)

    def _check_losses(self, outputs: Sequence[Tensor], target: Tensor) -> None:
        """Check that every loss takes its block's output and feedback, and gives a scalar with a gradient.

        Raises:
            BadValue: naming the block.
        """
        rest = [output.detach().requires_grad_(output.is_floating_point()) for output in outputs]
        loss, output = self.losses[0], outputs[0]
        try:
            with torch.enable_grad():
                try:
                    feedback = descend(self.units, self.encoding.message())
                except (AssertionError, AttributeError, TypeError):
                    # A loss that needs feedback and is sent none is told of when a run begins.
                    return
                for block, from_above in zip(self.units, feedback, strict=True):
                    own, rest = rest[: len(block.losses)], rest[len(block.losses) :]
                    received, seen = [from_above], own
                    if isinstance(block, JointBlock):
                        received, seen = block.lessons(own, target), block.judged(own, target)
                    for loss, output, message in zip(block.losses, seen, received, strict=True):
                        _check_value(loss, loss(output, target, message))
        except BpfreeError:
            raise
        except (RuntimeError, ValueError, IndexError) as error:
            raise BadValue(
                f"{type(loss).__name__} cannot be computed for a block that gives {list(output.shape[1:])} a "
                f"sample: {error}"
            ) from error

    def _check_memory(self, seen: Sequence[tuple[LocalLoss, Tensor]], n_classes: int, states: int) -> None:
        """Check that heads and readouts that learn fit into memory, with what optimizers keep of all."""
        heads = sum(loss.planned(output, n_classes) for loss, output in seen)
        heads += sum(self.readout(name).planned([o for _, o in seen], n_classes) for name in self.readouts)
        network = sum(p.numel() for p in self.parameters() if p.requires_grad)
        if heads:
            what = f"heads of {heads:,} parameters on a network of {network:,}, with the optimizer's state,"
            # Heads and their gradients are yet to be made; the network is there already.
            size = torch.get_default_dtype().itemsize
            needed = size * ((2 + states) * heads + states * network)
            fix = "bound the heads by head_features or head_pool (features in loss_options)"
            check_memory(needed, seen[0][1].device, what, fix)

    def outputs(self, rows: Rows, n_blocks: int | None = None) -> list[Tensor]:
        """The outputs of the first ``n_blocks`` blocks (all by default), bottom first."""
        outputs: list[Tensor] = []
        for block in self.units[:n_blocks]:
            rows = block.join(rows, None)
            outputs += block.outputs(rows)
            rows = block.onward(rows, None if isinstance(rows, Nodes) else outputs[-1])
        return outputs

    def forward(self, x: Tensor) -> Tensor:
        """Class scores ``[B, C]`` of the samples ``x [B, ...]`` by the first readout."""
        readout = self.readout(self.headline)
        return readout(self.outputs(self.encoding.view(x, readout.view)), self.losses)  # type: ignore[no-any-return]

    def to_module(self) -> nn.Module:
        """An ordinary module that computes `forward`, sharing the trained parameters.

        It is the network that was cut, where there is one that computes the same; otherwise this cascade.
        """
        return self._source[0] if self._source[0] is not None else self
