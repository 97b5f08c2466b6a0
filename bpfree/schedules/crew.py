"""Who trains which blocks: one worker all of them, or several workers a group each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from bpfree._errors import BadValue
from bpfree._settings import STRICT
from bpfree.cascade import Block, Cascade, Rows, send_down
from bpfree.losses import LocalLoss
from bpfree.nn import counted_modules
from bpfree.schedules.wires import Wires

#: Makes the input rows of the first block and their targets, for one batch of the training size.
Probe = Callable[[], tuple[Rows, Tensor]]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """How the workers of a pipelined run work together; what comes of it does not depend on it.

    But for ``staleness``, where messages come down a wire between two workers.

    Attributes:
        groups: Number of blocks of each worker, bottom first; None: so that the largest count of operations
            in a group is smallest.
        replicas: Workers that train the same group, each on a part of every batch; so there are ``replicas``
            workers for each group. See `bpfree.schedules.replicas`.
        queue: Batches that may wait on a link, at either end of it.
        staleness: How many steps a message from above may be old; 0 makes a worker wait for the newest, and
            is the simultaneous schedule to the bit; None: any age.
        save_every: Batches between two writes of a worker's checkpoint; where there is a checkpoint, as many
            batches are kept in memory at each link.
        timeout_s: Seconds after which a worker that neither answers nor breaks the connection is given up.
    """

    __pydantic_config__ = STRICT

    groups: list[Annotated[int, Ge(1)]] | None = None
    replicas: Annotated[int, Ge(1)] = 1
    queue: Annotated[int, Ge(1)] = 2
    staleness: Annotated[int, Ge(0)] | None = None
    save_every: Annotated[int, Ge(1)] = 200
    timeout_s: Annotated[float, Gt(0)] = 1800.0


class Crew:
    """One worker, who trains all blocks and has nobody to tell or to wait for.

    Attributes:
        rank: Number of this worker's group of blocks, of ``size``.
        replica: Number among the workers that train the same group, of ``replicas``.
        label: Tells the workers' files from those of another number of workers; empty for one alone.
        weight: This worker's share of the rows of the batch that was last given out.
        wires: To the workers that train the blocks above and below.
    """

    rank: int = 0
    size: int = 1
    replica: int = 0
    replicas: int = 1
    label: str = ""
    weight: float = 1.0
    wires: Wires = Wires()

    @property
    def leads(self) -> bool:
        """Whether this worker is the one that speaks for all."""
        return self.rank == 0 and self.replica == 0

    def assign(self, cascade: Cascade, probe: Probe) -> None:
        """Give every worker its blocks."""

    def share(self, first: int, stop: int) -> tuple[int, int]:
        """Which of the blocks ``first`` to ``stop - 1`` are this worker's, told in the same way."""
        return first, stop

    def part(self, rows: Rows, target: Tensor, views: int) -> tuple[Rows, Tensor]:
        """Those of a batch's rows, and of their targets, that this worker trains on; all of them.

        Args:
            rows: ``[views * B, ...]``, view by view.
            target: ``[views * B]``.
            views: How many rows stand for a sample.
        """
        return rows, target

    def working(self) -> AbstractContextManager[None]:
        """Inside, a step is taken."""
        return nullcontext()

    def begin(self, positions: Sequence[int], stop: int) -> None:
        """Begin, or go on with, an epoch that ends after step ``stop - 1``, each worker where it stands.

        Args:
            positions: Steps that each worker has taken.
            stop: Steps that all will have taken at the next cut.
        """

    def due(self, index: int, elapsed: bool) -> bool:
        """Whether a checkpoint is due after ``index`` steps; ``elapsed``: whether it is time for one."""
        return elapsed

    def cut(self, index: int, save: Callable[[], None] | None) -> None:
        """All blocks have taken ``index`` steps; ``save`` leaves a checkpoint from which each can go on."""

    def total(self, sums: Tensor) -> Tensor:
        """The sums of the losses of all blocks, from this worker's own."""
        return sums

    def state(self) -> dict[str, Tensor]:
        """What is on this worker's wires."""
        return {}

    def gathered(self, own: T) -> list[T]:
        """What a checkpoint needs of each replica, by number; to be used by the first alone."""
        return [own]

    def sync(self, cascade: Cascade) -> None:
        """Give every worker the weights of all blocks, at a cut."""

    def report(self) -> dict[str, Any]:
        """What the history's row says of the wires since the last report."""
        return {}


def costs(cascade: Cascade, rows: Rows, target: Tensor, message: Tensor | None) -> list[float]:
    """Operations of one step of each block: forward, loss with its head, and backward, as torch counts them.

    Nothing changes: copies are asked.
    """
    import copy

    from torch.utils.flop_counter import FlopCounterMode

    blocks: Sequence[Block] = copy.deepcopy(cascade).eval().units
    found = []
    lessons, _ = send_down(blocks, message)
    for block, lesson in zip(blocks, lessons, strict=True):
        block.loss.memory = None
        rows = block.join(rows, lesson)
        with FlopCounterMode(display=False) as counter:
            losses, output = block.objective(block.sense(rows), target, lesson)
            total = block.total(losses)
            if total.requires_grad:
                with torch.autocast(target.device.type, enabled=False):
                    total.backward()
        rows = block.onward(rows, output.detach())
        # What is not a product costs something, too: a block without any is not free.
        found.append(float(counter.get_total_flops() + output.numel()))
    return found


def balanced(costs: Sequence[float], n: int) -> list[int]:
    """Cut blocks into ``n`` groups of neighbours, so that the largest sum of costs is smallest.

    Returns:
        Number of blocks in each group, at least one.
    """
    best: dict[tuple[int, int], tuple[float, list[int]]] = {(0, 0): (0.0, [])}
    for stop in range(1, len(costs) + 1):
        for k in range(1, n + 1):
            options = [
                (max(best[first, k - 1][0], sum(costs[first:stop])), [*best[first, k - 1][1], stop - first])
                for first in range(stop)
                if (first, k - 1) in best
            ]
            if options:
                best[stop, k] = min(options)
    return best[len(costs), n][1]


def check_pipelined(cascade: Cascade, n: int, groups: Sequence[int] | None) -> None:
    """Check that ``n`` workers can train a cascade.

    Raises:
        BadValue: If not.
    """
    units = cascade.units
    if n > len(units):
        raise BadValue(
            f"schedule = 'pipelined' with {n} workers: expected at most {len(units)}, the number of blocks; "
            "start fewer (torchrun --nproc-per-node), or cut the net into more blocks"
        )
    if groups is not None and (len(groups) != n or sum(groups) != len(units)):
        raise BadValue(
            f"pipeline.groups = {list(groups)}: expected {n} numbers, one for each worker, "
            f"whose sum is {len(units)}, the number of blocks"
        )
    if cascade.encoding.whole:
        raise BadValue(
            "schedule = 'pipelined' with several workers: a graph is shown whole, and only samples that "
            "stand alone go from worker to worker; use 'greedy' or 'simultaneous'"
        )
    learning = [name for name in cascade.readouts if cascade.readout(name).learns]
    if learning:
        raise BadValue(
            f"schedule = 'pipelined' with several workers: the readout {learning[0]!r} learns from the "
            "outputs of all blocks at every step, which no worker has; leave it out (for forward_forward: "
            "readout = 'goodness', classifier = false)"
        )
    if any(counted_modules(block) for block in units):
        raise BadValue(
            "schedule = 'pipelined' with several workers: each would ask the devices behind the fronts; use "
            "'greedy' or 'simultaneous'"
        )
    if any(type(loss).remembered is not LocalLoss.remembered for loss in cascade.losses):
        raise BadValue(
            "schedule = 'pipelined' with several workers: these losses send down what they remember of the "
            "last batch; use 'simultaneous'"
        )
