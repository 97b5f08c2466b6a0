"""The pipelined schedule: a worker for each group of neighbouring blocks, joined by `torch.distributed`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bpfree._errors import BadValue
from bpfree.cascade import Cascade, Rows, send_down
from bpfree.schedules.crew import Crew, Pipeline, Probe, balanced, check_pipelined, costs
from bpfree.schedules.links import Inlet, Newest, Outlet, guarded
from bpfree.schedules.wires import Age, LinkedWires

#: Tag of the word that a checkpoint is written.
SAVED = 1


class Workers(Crew):
    """This process and the others, each with a group of blocks; rank 0 has the lowest.

    Process groups are of the gloo backend: messages lie in host memory.

    Args:
        pipeline: How they work together.
        device: Where this worker computes.
        check: Raises if this worker has been told to stop.
    """

    wires: LinkedWires

    def __init__(self, pipeline: Pipeline, device: torch.device, check: Callable[[], None]) -> None:
        self.pipeline, self.device, self.check = pipeline, device, check
        #: The process groups that were made here.
        self.made: list[Any] = []
        self.group = self.new_group()
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        self.groups: list[int] = []

    def new_group(self) -> Any:
        """A process group of all workers."""
        timeout = timedelta(seconds=self.pipeline.timeout_s)
        self.made.append(dist.new_group(backend="gloo", timeout=timeout))
        return self.made[-1]

    # ---- blocks and links ------------------------------------------------------------------------------

    @torch.enable_grad()
    def assign(self, cascade: Cascade, probe: Probe) -> None:
        """Cut the blocks into groups, and lay the wires.

        Raises:
            BadValue: If this cascade cannot be trained by several workers.
        """
        check_pipelined(cascade, self.size, self.pipeline.groups)
        rows, target = probe()
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
        ahead, messages = 2 * p.queue + 2, self.new_group() if any(down) else None
        if self.rank > 0:
            self.wires.below = Inlet(self.group, below, up[below], p.queue, self.device)
        if above < self.size:
            self.wires.up = Outlet(self.group, above, up[self.rank], p.queue, keep=False)
            self.wires.above = True
        if self.rank > 0 and down[below]:
            self.wires.down = Outlet(messages, below, down[below], ahead, keep=False)
        if above < self.size and down[self.rank]:
            self.wires.top = Newest(Inlet(messages, above, down[self.rank], ahead, self.device))

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
                rows = block.onward(rows)
            up.append(_nbytes(rows))
        cascade.train(training)
        return up, down

    def share(self, first: int, stop: int) -> tuple[int, int]:
        return max(first, self.bounds[self.rank]), min(stop, self.bounds[self.rank + 1])

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
            guarded(above, lambda: dist.recv(word, above, self.group, SAVED))
        if self.wires.up is not None:
            self.wires.up.forget(index)
        save()
        if below >= 0:
            guarded(below, lambda: dist.send(word, below, self.group, SAVED))

    def total(self, sums: Tensor) -> Tensor:
        found = torch.zeros(sum(self.n_losses), dtype=sums.dtype)
        first, stop = (sum(self.n_losses[:k]) for k in (self.bounds[self.rank], self.bounds[self.rank + 1]))
        found[first:stop] = sums.cpu()
        guarded(self.rank, lambda: dist.all_reduce(found, group=self.group))
        return found

    def sync(self, cascade: Cascade) -> None:
        for owner in range(self.size):
            blocks = cascade.units[self.bounds[owner] : self.bounds[owner + 1]]
            tensors = [tensor for block in blocks for tensor in block.state_dict().values()]
            if not tensors:
                continue
            flat = torch.cat([_bytes(tensor) for tensor in tensors])
            guarded(owner, partial(dist.broadcast, flat, owner, self.group))
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

    def state(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """What is on the wires, as JSON: the groups of blocks; what is kept goes to ``tensors``."""
        kept = {} if self.wires.up is None else self.wires.up.kept
        tensors |= {f"kept.{index}": message for index, message in kept.items()}
        latest = None if self.wires.top is None else self.wires.top.latest
        if latest is not None:
            tensors["latest"] = latest[0]
        return {"groups": self.groups, "latest": None if latest is None else latest[1]}

    def load(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Take up what `state` took.

        Raises:
            BadValue: If the groups of blocks were others.
        """
        if state["groups"] != self.groups:
            raise BadValue(
                f"pipeline.groups = {self.groups}: the run was begun with groups = {state['groups']}; "
                "give these to go on with it"
            )
        if self.wires.up is not None:
            self.wires.up.kept = {
                int(name.removeprefix("kept.")): tensor.cpu()
                for name, tensor in tensors.items()
                if name.startswith("kept.")
            }
        if self.wires.top is not None and state["latest"] is not None:
            self.wires.top.latest = (tensors["latest"], state["latest"])

    # ---- words -----------------------------------------------------------------------------------------

    def gather(self, word: Any) -> list[Any]:
        """What every worker says, by rank."""
        found: list[Any] = [None] * self.size
        guarded(self.rank, lambda: dist.all_gather_object(found, word, group=self.group))
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
