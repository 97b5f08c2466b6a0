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
from bpfree.core.block import Block, descend
from bpfree.core.joint import JointBlock
from bpfree.core.readouts import Readout, make_readouts
from bpfree.core.sharing import check_objects
from bpfree.encodings.base import Encoding
from bpfree.encodings.label_overlay import LabelOverlay, put_beside
from bpfree.losses import LocalLoss


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
                rows = block.next_input(block.concat_feedback(rows, None), seen[-1][1])
            self._check_memory(seen, n_classes, states)
            for loss, output in seen:
                loss.build(output, n_classes)
            for readout in map(self.readout, self.readouts):
                readout.build(self.outputs(self.encoding.view(x, readout.view)), n_classes)
            if not self.encoding.transductive:
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
            rows = block.concat_feedback(rows, None)
            outputs += block.outputs(rows)
            rows = block.next_input(rows, outputs[-1])
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
