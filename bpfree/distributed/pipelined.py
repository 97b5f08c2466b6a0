"""The pipelined schedule: a worker for each group of neighbouring blocks, joined by `torch.distributed`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bpfree._errors import BadValue
from bpfree._rows import Rows
from bpfree.core.block import send_down
from bpfree.core.cascade import Cascade
from bpfree.distributed.links import Inlet, Newest, Outlet, guarded
from bpfree.distributed.neighbors import Age, LinkedWires
from bpfree.distributed.replicas import Replicas, check_replicas, check_replicated
from bpfree.distributed.workers import Crew, Pipeline, Probe, T, balanced, check_pipelined, costs

#: Tag of the word that a checkpoint is written.
SAVED = 1


class Workers(Crew):
    """This process and the others, each with a group of blocks; rank 0 has the lowest.

    Where groups have replicas, those of one number are a column, joined by links as if there were no others.
    Process groups are of the gloo backend: messages lie in host memory.

    Args:
        pipeline: How they work together.
        device: Where this worker computes.
        check: Raises if this worker has been told to stop.
    """

    wires: LinkedWires

    def __init__(self, pipeline: Pipeline, device: torch.device, check: Callable[[], None]) -> None:
        self.pipeline, self.device, self.check = pipeline, device, check
        n, self.replicas = dist.get_world_size(), pipeline.replicas
        check_replicas(self.replicas, n)
        self.size = n // self.replicas
        self.replica, self.rank = divmod(dist.get_rank(), self.size)
        self.label = str(self.size) if self.replicas == 1 else f"{self.size}x{self.replicas}"
        #: The process groups that were made here.
        self.made: list[Any] = []
        self.everybody = self._new_group([list(range(n))])
        self.columns = [list(range(first, first + self.size)) for first in range(0, n, self.size)]
        self.group = self.everybody if self.replicas == 1 else self._new_group(self.columns)
        self.team: Replicas | None = None
        if self.replicas > 1:
            teams = [list(range(rank, n, self.size)) for rank in range(self.size)]
            self.team = Replicas(self._new_group(teams), self.replica, self.replicas)
        self.groups: list[int] = []

    def _new_group(self, members: list[list[int]]) -> Any:
        """A process group of those workers among which this one stands."""
        timeout = timedelta(seconds=self.pipeline.timeout_s)
        own, _ = dist.new_subgroups_by_enumeration(members, timeout, "gloo")
        self.made.append(own)
        return own

    def close(self) -> None:
        """End the process groups, and leave the blocks as they were found."""
        if self.team is not None:
            self.team.close()
        for group in self.made:
            dist.destroy_process_group(group)

    # ---- blocks and links ------------------------------------------------------------------------------

    @torch.enable_grad()
    def assign(self, cascade: Cascade, probe: Probe) -> None:
        """Cut the blocks into groups, and lay the wires.

        Raises:
            BadValue: If this cascade cannot be trained by several workers.
        """
        check_pipelined(cascade, self.size, self.pipeline.groups)
        rows, target = probe()
        if self.team is not None:
            check_replicated(cascade)
            # The first replica's part is the largest: what it sends must fit on every wire.
            first = Replicas(self.team.group, 0, self.replicas)
            rows, target = first.part(rows, target, cascade.encoding.views)
        message = cascade.encoding.message()
        groups = self.pipeline.groups
        if groups is None:
            groups = balanced(costs(cascade, rows, target, message), self.size)
        self.groups = self.tell(groups)
        self.bounds = [sum(self.groups[:k]) for k in range(self.size + 1)]
        self.n_losses = [len(block.losses) for block in cascade.units]
        up, down = self._capacities(cascade, rows, message)
        p, above, below = self.pipeline, self.rank + 1, self.rank - 1
        self.wires = LinkedWires(self.check, staleness=p.staleness)
        # As many messages as can be on the way, in a group of their own, as a thread of their own takes them.
        ahead, messages = 2 * p.queue + 2, self._new_group(self.columns) if any(down) else None
        if self.rank > 0:
            self.wires.below = Inlet(self.group, below, up[below], p.queue, self.device)
        if above < self.size:
            self.wires.up = Outlet(self.group, above, up[self.rank], p.queue, keep=False)
            self.wires.above = True
        if self.rank > 0 and down[below]:
            self.wires.down = Outlet(messages, below, down[below], ahead, keep=False)
        if above < self.size and down[self.rank]:
            self.wires.top = Newest(Inlet(messages, above, down[self.rank], ahead, self.device))
        if self.team is not None:
            self.team.average(cascade.units[slice(*self.share(0, len(cascade.units)))])

    @torch.no_grad()
    def _capacities(
        self, cascade: Cascade, rows: Rows, message: Tensor | None
    ) -> tuple[list[int], list[int]]:
        """Bytes of the largest tensor that goes up, and that comes down, each of the links; 0 for none."""
        units, training = cascade.units, cascade.training
        cascade.eval()
        up, down = [], []
        for first, stop in zip(self.bounds[:-1], self.bounds[1:], strict=True):
            if first:
                _, sent = send_down(units[first:], message)
                down.append(_nbytes(sent))
            for block in units[first:stop]:
                rows = block.next_input(rows)
            up.append(_nbytes(rows))
        cascade.train(training)
        return up, down

    def share(self, first: int, stop: int) -> tuple[int, int]:
        return max(first, self.bounds[self.rank]), min(stop, self.bounds[self.rank + 1])

    def part(self, rows: Rows, target: Tensor, views: int) -> tuple[Rows, Tensor]:
        if self.team is None:
            return rows, target
        rows, target = self.team.part(rows, target, views)
        self.weight = self.team.weight
        return rows, target

    def working(self) -> AbstractContextManager[None]:
        return nullcontext() if self.team is None else self.team.working()

    # ---- a run -----------------------------------------------------------------------------------------

    def begin(self, positions: Sequence[int], stop: int) -> None:
        own, wires = positions[self.rank], self.wires
        if wires.below is not None:
            wires.below.expect(own, stop)
        if wires.top is not None:
            wires.top.expect(positions[self.rank + 1], stop)
        if wires.up is not None:
            wires.up.wanted_from = positions[self.rank + 1]
            wires.up.resend(positions[self.rank + 1], own)

    def due(self, index: int, elapsed: bool) -> bool:
        """A worker writes a little later than the one above it, when that one surely has written.

        A send ends when the receiver asks for it, at most ``queue`` batches ahead; so a worker that begins
        step t knows that the one above has taken all steps before ``t - 2 queue - 1``.
        """
        later = (self.size - 1 - self.rank) * (2 * self.pipeline.queue + 2)
        if index <= later or (index - later) % self.pipeline.save_every:
            return False
        if self.wires.up is not None:
            self.wires.up.forget(index - (2 * self.pipeline.queue + 2))
        return True

    def cut(self, index: int, save: Callable[[], None] | None) -> None:
        if self.wires.top is not None:
            self.wires.top.drain()
        if save is None:
            return
        # From the top down: when a worker writes, nothing that it has kept is needed any more.
        above, below = self.rank + 1, self.rank - 1
        word = torch.zeros(1)
        if above < self.size:
            guarded(above, lambda: dist.recv(word, group=self.group, tag=SAVED, group_src=above))
        if self.wires.up is not None:
            self.wires.up.forget(index)
        save()
        if below >= 0:
            guarded(below, lambda: dist.send(word, group=self.group, tag=SAVED, group_dst=below))

    def total(self, sums: Tensor) -> Tensor:
        found = torch.zeros(sum(self.n_losses), dtype=sums.dtype)
        first, stop = (sum(self.n_losses[:k]) for k in (self.bounds[self.rank], self.bounds[self.rank + 1]))
        found[first:stop] = sums.cpu()
        guarded(self.rank, lambda: dist.all_reduce(found, group=self.everybody))
        return found

    def sync(self, cascade: Cascade) -> None:
        for owner in range(self.size):
            blocks = cascade.units[self.bounds[owner] : self.bounds[owner + 1]]
            tensors = [tensor for block in blocks for tensor in block.state_dict().values()]
            if not tensors:
                continue
            flat = torch.cat([_bytes(tensor) for tensor in tensors])
            guarded(owner, partial(dist.broadcast, flat, group=self.group, group_src=owner))
            if owner != self.rank:
                _fill(tensors, flat)

    def report(self) -> dict[str, Any]:
        ages = self.gather(self.wires.age)
        self.wires.age = Age()
        if not any(age.steps for age in ages):
            return {}
        used = [age for age in ages if age.steps]
        return {"age": {"mean": [a.total / a.steps for a in used], "largest": [a.largest for a in used]}}

    # ---- checkpoints -----------------------------------------------------------------------------------

    def keep(self) -> None:
        """From now on, keep what is sent up until the worker above has it in a checkpoint."""
        if self.wires.up is not None:
            self.wires.up.keep = True

    def gathered(self, own: T) -> list[T]:
        if self.team is None:
            return [own]
        found: list[Any] = [None] * self.replicas if self.replica == 0 else []
        group = self.team.group
        guarded(self.rank, lambda: dist.gather_object(own, found or None, group=group, group_dst=0))
        return found

    def state(self) -> dict[str, Tensor]:
        kept = {} if self.wires.up is None else self.wires.up.kept
        tensors = {f"kept.{index}": message for index, message in kept.items()}
        latest = None if self.wires.top is None else self.wires.top.latest
        if latest is not None:
            tensors |= {"latest": latest[0].cpu(), "latest_step": torch.tensor(latest[1])}
        return tensors

    def load(self, groups: list[int], tensors: dict[str, Tensor]) -> None:
        """Take up what `state` took.

        Args:
            groups: Those that the blocks were given out in.
            tensors: What `state` gave.

        Raises:
            BadValue: If the groups of blocks were others.
        """
        if groups != self.groups:
            raise BadValue(
                f"pipeline.groups = {self.groups}: the run was begun with groups = {groups}; "
                "give these to go on with it"
            )
        if self.wires.up is not None:
            self.wires.up.kept = {
                int(name.removeprefix("kept.")): tensor.cpu()
                for name, tensor in tensors.items()
                if name.startswith("kept.")
            }
        if self.wires.top is not None and "latest" in tensors:
            self.wires.top.latest = (tensors["latest"], int(tensors["latest_step"]))

    # ---- words -----------------------------------------------------------------------------------------

    def gather(self, word: Any) -> list[Any]:
        """What every worker says: those of the first replicas by rank, then those of the second."""
        found: list[Any] = [None] * (self.size * self.replicas)
        guarded(self.rank, lambda: dist.all_gather_object(found, word, group=self.everybody))
        return found

    def tell(self, word: Any) -> Any:
        """What the first worker says."""
        return self.gather(word)[0]


def _nbytes(rows: Rows | None) -> int:
    if rows is None:
        return 0
    assert isinstance(rows, Tensor)
    return rows.numel() * rows.element_size()


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu()


def _fill(tensors: Sequence[Tensor], flat: Tensor) -> None:
    """Write bytes that `_bytes` made of tensors like these into them."""
    at = 0
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        # A copy begins at an address that suits every type.
        tensor.detach().copy_(flat[at : at + size].clone().view(tensor.dtype).view(tensor.shape))
        at += size
