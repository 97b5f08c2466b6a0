"""`Cascade`: a chain of blocks, the encoding of their input, and readouts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from bpfree._errors import BadValue, BpfreeError
from bpfree._memory import check_memory
from bpfree._renamed import warn_renamed
from bpfree._rows import Rows
from bpfree._settings import did_you_mean
from bpfree.core.block import BaseBlock, send_feedback
from bpfree.core.readouts import Readout, make_readouts
from bpfree.core.sharing import check_objects
from bpfree.encodings.base import Encoding
from bpfree.losses import BlockLoss, LocalLoss, OnePassLoss, ScoringLoss, StatefulFeedbackLoss


def _check_value(loss: LocalLoss, value: object) -> None:
    """Check the return value of a loss.

    Raises:
        BadValue: If it is not a scalar tensor with a gradient.
    """
    kind = type(loss).__name__
    if not isinstance(value, Tensor) or value.ndim:
        actual = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise BadValue(
            f"{kind}.forward returned {actual}: expected a scalar tensor, such as the mean over rows"
        )
    if not value.requires_grad and not isinstance(loss, OnePassLoss):
        raise BadValue(
            f"{kind}.forward returned a value without a gradient: compute it from `output` without detach or "
            "item"
        )


class Cascade(nn.Module):
    """A chain of blocks, the encoding of the input of the first block, and readouts of the outputs.

    Args:
        blocks: Bottom first.
        readouts: Readouts by name. The first computes the prediction; the others are evaluated as well.
        encoding: How labeled samples are encoded as inputs of the first block.
        source: The module from which the bodies were cut, with the same parameters, if its output equals that
            of the first readout.
        sweeps: For blocks that use feedback as an input: readouts average over the sweeps from the first
            number to the second, exclusive. ``(0, 1)``: one forward pass, without feedback.

    Attributes:
        headline: Name of the readout that computes the prediction.

    Raises:
        BadValue: If a block, loss or readout object is given more than once.
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
        # In a tuple, so that it is not a submodule: its parameters would be in the state_dict twice.
        self._source: tuple[nn.Module | None] = (source,)
        self.headline = next(iter(readouts))
        check_objects(self)

    def lead(self, readout: str) -> Cascade:
        """Old name of `set_headline`."""
        warn_renamed("Cascade.lead", "Cascade.set_headline")
        return self.set_headline(readout)

    def set_headline(self, readout: str) -> Cascade:
        """Compute predictions by the readout of this name; return the cascade.

        Raises:
            BadValue: If there is no such readout, or no such block for ``"block:k"``.
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
        return cast(list[BaseBlock], list(self.blocks))

    @property
    def losses(self) -> list[LocalLoss]:
        """The local losses of all blocks, bottom first."""
        return [loss for block in self.units for loss in block.losses]

    def states(self) -> dict[str, Tensor]:
        """Return the states of all `StatefulFeedbackLoss`, by the index of the loss."""
        losses = enumerate(self.losses)
        return {
            str(k): loss.state
            for k, loss in losses
            if isinstance(loss, StatefulFeedbackLoss) and loss.state is not None
        }

    def set_states(self, states: Mapping[str, Tensor]) -> None:
        """Set the states that `states` has returned; the states of other losses become None."""
        for k, loss in enumerate(self.losses):
            if isinstance(loss, StatefulFeedbackLoss):
                loss.state = states.get(str(k))

    def readout(self, name: str) -> Readout:
        """Return the readout with this name."""
        readout = self.readouts[name]
        assert isinstance(readout, Readout)
        return readout

    def build(self, x: Tensor, n_classes: int, states: int = 2) -> None:
        """Build the losses and readouts for samples with the shape of ``x [rows, ...]``.

        Args:
            x: The samples.
            n_classes: Number of classes.
            states: Number of values that the optimizer stores per parameter.

        Raises:
            BadValue: If the parameters, with the state of their optimizers, do not fit into memory; if a loss
                cannot be computed for the output of its block.
        """
        self.encoding.build(n_classes)
        self.encoding.prepare(self.units[0].parts[0], x.shape[1:])
        with torch.no_grad():
            y = torch.zeros(len(x), dtype=torch.long, device=x.device)
            random_part = self.encoding.draw(
                y, torch.Generator(x.device), torch.zeros(len(x), n_classes, device=x.device)
            )
            inputs, target = self.encoding.encode(x, y, random_part)
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
        """Check that each loss can be computed from its block's output and feedback.

        Args:
            outputs: For each block, the outputs of its losses.
            target: The target of the rows.

        Raises:
            BadValue: If a loss cannot be computed, or is not a scalar with a gradient.
        """
        loss, output = self.losses[0], outputs[0][0]
        try:
            with torch.enable_grad():
                try:
                    feedback, _ = send_feedback(self.units, self.encoding.message())
                except (AssertionError, AttributeError, TypeError):
                    # A loss without the feedback that it needs is reported at the start of a run.
                    return
                for block, block_outputs, block_feedback in zip(self.units, outputs, feedback, strict=True):
                    leaves = [o.detach().requires_grad_(o.is_floating_point()) for o in block_outputs]
                    for loss, output, loss_feedback in block.loss_inputs(leaves, target, block_feedback):
                        if not isinstance(loss, BlockLoss):
                            _check_value(loss, loss(output, target, loss_feedback))
        except BpfreeError:
            raise
        except (RuntimeError, ValueError, IndexError) as error:
            raise BadValue(
                f"{type(loss).__name__} cannot be computed for a block whose output has the shape "
                f"{list(output.shape[1:])} per sample: {error}"
            ) from error

    def _check_memory(self, pairs: Sequence[tuple[LocalLoss, Tensor]], n_classes: int, states: int) -> None:
        """Check that heads and readouts fit into memory, with the state of all optimizers.

        Raises:
            BadValue: If they do not fit.
        """
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
            # The memory of the network itself is allocated already.
            size = torch.get_default_dtype().itemsize
            needed = size * ((2 + states) * heads + states * network)
            fix = "limit the heads by head_features or head_pool (features in loss_options)"
            check_memory(needed, outputs[0].device, what, fix)

    def outputs(self, inputs: Rows, n_blocks: int | None = None) -> list[Tensor]:
        """Compute the outputs of the first ``n_blocks`` blocks (all by default), bottom first."""
        outputs: list[Tensor] = []
        for block in self.units[:n_blocks]:
            block_outputs, inputs = block.evaluate(inputs)
            outputs += block_outputs
        return outputs

    def forward(self, x: Tensor) -> Tensor:
        """Compute class scores ``[B, C]`` of the samples ``x [B, ...]`` by the first readout."""
        readout = self.readout(self.headline)
        result: Tensor = readout(self.outputs(self.encoding.view(x, readout.view)), self.losses)
        return result

    def to_module(self) -> nn.Module:
        """Return a module that computes `forward` with the trained parameters.

        It is the network that was cut into blocks, if its output is the same; otherwise this cascade.
        """
        return self._source[0] if self._source[0] is not None else self
