"""`Cascade`: blocks in a row, the encoding that feeds the first, and readouts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bpfree._errors import BadValue, BpfreeError
from bpfree._memory import check_memory
from bpfree._rows import Rows
from bpfree._settings import did_you_mean
from bpfree.core.block import BaseBlock, send_feedback
from bpfree.core.readouts import Readout, make_readouts
from bpfree.core.sharing import check_objects
from bpfree.encodings.base import Encoding
from bpfree.losses import BlockLoss, LocalLoss, OnePassLoss, ScoringLoss, StatefulFeedbackLoss


def _check_value(loss: LocalLoss, value: Any) -> None:
    """Check what a loss has returned."""
    kind = type(loss).__name__
    if not isinstance(value, Tensor) or value.ndim:
        found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise BadValue(
            f"{kind}.forward returned {found}: expected a scalar tensor, such as the mean over rows"
        )
    if not value.requires_grad and not isinstance(loss, OnePassLoss):
        raise BadValue(f"{kind}.forward has no gradient: compute it from `output` without detach or item")


class Cascade(nn.Module):
    """Blocks in a row, the encoding that makes the input of the first, and readouts of all.

    Args:
        blocks: Bottom first.
        readouts: By name. The first is the prediction rule; the others are reported beside it.
        encoding: How labeled samples become inputs of the first block.
        source: The module that the bodies were cut from and share their parameters with, if the first
            readout computes the same as it.
        sweeps: The sweeps that readouts average over, where blocks read feedback: from the first number to
            before the second. ``(0, 1)``: one forward pass, without feedback.

    Raises:
        BadValue: If one block, loss or readout object is given more than once.
    """

    def __init__(
        self,
        blocks: Iterable[BaseBlock],
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
        # Not a submodule: its parameters are those of the bodies and must not be in the state_dict twice.
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
            others = {name: r for name, r in self.readouts.items() if name != readout}
            self.readouts = nn.ModuleDict({readout: self.readouts[readout]} | others)
        return self

    @property
    def units(self) -> list[BaseBlock]:
        """The blocks, bottom first."""
        return list(self.blocks)  # type: ignore[arg-type]

    @property
    def losses(self) -> list[LocalLoss]:
        """The local losses of all blocks, bottom first."""
        return [loss for block in self.units for loss in block.losses]

    def states(self) -> dict[str, Tensor]:
        """The states of the losses that keep one from step to step, by number."""
        losses = enumerate(self.losses)
        return {
            str(k): loss.state
            for k, loss in losses
            if isinstance(loss, StatefulFeedbackLoss) and loss.state is not None
        }

    def set_states(self, states: Mapping[str, Tensor]) -> None:
        """Set what `states` returned; losses that are not named have no state afterwards."""
        for k, loss in enumerate(self.losses):
            if isinstance(loss, StatefulFeedbackLoss):
                loss.state = states.get(str(k))

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
            BadValue: If memory cannot hold what is to be created, with its optimizer's state; if a rule
                cannot train its block.
        """
        self.encoding.build(n_classes)
        self.encoding.prepare(self.units[0].parts[0], x.shape[1:])
        with torch.no_grad():
            y = torch.zeros(len(x), dtype=torch.long, device=x.device)
            drawn = self.encoding.draw(
                y, torch.Generator(x.device), torch.zeros(len(x), n_classes, device=x.device)
            )
            inputs, target = self.encoding.encode(x, y, drawn)
            probes: list[list[tuple[LocalLoss, Tensor]]] = []
            for block in self.units:
                probes.append(block.probe(inputs))
                inputs = block.concat_feedback(inputs, None)
                inputs = block.next_input(inputs, probes[-1][-1][1])
            pairs = [pair for probe in probes for pair in probe]
            self._check_memory(pairs, n_classes, states)
            for loss, output in pairs:
                loss.build(output, n_classes)
            for readout in map(self.readout, self.readouts):
                readout.build(self.outputs(self.encoding.view(x, readout.view)), n_classes)
        if not self.encoding.transductive:
            self._check_losses([[output for _, output in probe] for probe in probes], target)

    def _check_losses(self, outputs: Sequence[list[Tensor]], target: Tensor) -> None:
        """Check that every loss takes its block's output and feedback, and gives a scalar with a gradient.

        Args:
            outputs: For each block, those of its losses.
            target: Their target.

        Raises:
            BadValue: naming the loss.
        """
        loss, output = self.losses[0], outputs[0][0]
        try:
            with torch.enable_grad():
                try:
                    feedback, _ = send_feedback(self.units, self.encoding.message())
                except (AssertionError, AttributeError, TypeError):
                    # A loss that needs feedback and gets none is reported when a run begins.
                    return
                for block, seen, own in zip(self.units, outputs, feedback, strict=True):
                    leaves = [o.detach().requires_grad_(o.is_floating_point()) for o in seen]
                    for loss, output, message in block.loss_inputs(leaves, target, own):
                        if not isinstance(loss, BlockLoss):
                            _check_value(loss, loss(output, target, message))
        except BpfreeError:
            raise
        except (RuntimeError, ValueError, IndexError) as error:
            raise BadValue(
                f"{type(loss).__name__} cannot be computed for a block that gives {list(output.shape[1:])} a "
                f"sample: {error}"
            ) from error

    def _check_memory(self, pairs: Sequence[tuple[LocalLoss, Tensor]], n_classes: int, states: int) -> None:
        """Check that heads and readouts that learn fit into memory, with the optimizer's state of all."""
        heads = sum(
            loss.planned_parameters(output, n_classes)
            for loss, output in pairs
            if isinstance(loss, ScoringLoss)
        )
        outputs = [output for _, output in pairs]
        heads += sum(self.readout(name).planned_parameters(outputs, n_classes) for name in self.readouts)
        network = sum(p.numel() for p in self.parameters() if p.requires_grad)
        if heads:
            what = f"heads of {heads:,} parameters on a network of {network:,}, with the optimizer's state,"
            # Heads and their gradients do not exist yet; the network does.
            size = torch.get_default_dtype().itemsize
            needed = size * ((2 + states) * heads + states * network)
            fix = "bound the heads by head_features or head_pool (features in loss_options)"
            check_memory(needed, outputs[0].device, what, fix)

    def outputs(self, inputs: Rows, n_blocks: int | None = None) -> list[Tensor]:
        """The outputs of the first ``n_blocks`` blocks (all by default), bottom first."""
        outputs: list[Tensor] = []
        for block in self.units[:n_blocks]:
            found, inputs = block.evaluate(inputs)
            outputs += found
        return outputs

    def forward(self, x: Tensor) -> Tensor:
        """Class scores ``[B, C]`` of the samples ``x [B, ...]`` by the first readout."""
        readout = self.readout(self.headline)
        return readout(self.outputs(self.encoding.view(x, readout.view)), self.losses)  # type: ignore[no-any-return]

    def to_module(self) -> nn.Module:
        """An ordinary module that computes `forward`, sharing the trained parameters.

        It is the network that was cut, if that computes the same; otherwise this cascade.
        """
        return self._source[0] if self._source[0] is not None else self
