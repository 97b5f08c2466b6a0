"""The pipelined schedule: one worker for each group of adjacent blocks, connected by `torch.distributed`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bpfree._errors import BadValue
from bpfree._rows import Rows
from bpfree._types import JsonObject
from bpfree.core.block import send_feedback
from bpfree.core.cascade import Cascade
from bpfree.distributed.links import NewestReceiver, Receiver, Sender, call_peer
from bpfree.distributed.neighbors import Age, LinkedNeighbors
from bpfree.distributed.partition import balanced_groups, block_costs, check_pipelined
from bpfree.distributed.replicas import Replicas, check_replicas, check_replicated
from bpfree.distributed.workers import ExampleBatch, P, Pipeline, RowsFunction, StepFunction, T, Workers

#: Tag of the message that a worker sends to the one below when it has written a checkpoint.
SAVED = 1


class PipelinedWorkers(Workers):
    """This process and the others, each with a group of blocks; rank 0 has the lowest.

    With replicas, the workers of one replica number form a pipeline of their own, with its own links. All
    process groups use the gloo backend, and messages are in host memory.

    Args:
        pipeline: Settings.
        device: Device on which this worker computes.
        check_stop: Raises `WorkerLost` if the process has received SIGTERM.
    """

    neighbors: LinkedNeighbors

    def __init__(self, pipeline: Pipeline, device: torch.device, check_stop: Callable[[], None]) -> None:
        self.pipeline, self.device, self.check_stop = pipeline, device, check_stop
        n, self.replicas = dist.get_world_size(), pipeline.replicas
        check_replicas(self.replicas, n)
        self.size = n // self.replicas
        self.replica, self.rank = divmod(dist.get_rank(), self.size)
        self.label = str(self.size) if self.replicas == 1 else f"{self.size}x{self.replicas}"
        self._process_groups: list[Any] = []
        #: Process groups of all workers, and of the pipeline that this worker belongs to.
        self.world = self._new_group([list(range(n))])
        self._pipelines = [list(range(first, first + self.size)) for first in range(0, n, self.size)]
        self.group = self.world if self.replicas == 1 else self._new_group(self._pipelines)
        self.peers: Replicas | None = None
        if self.replicas > 1:
            peers = [list(range(rank, n, self.size)) for rank in range(self.size)]
            self.peers = Replicas(self._new_group(peers), self.replica, self.replicas)

    def _new_group(self, members: list[list[int]]) -> Any:
        """The process group, one of those with these members, that this worker belongs to."""
        timeout = timedelta(seconds=self.pipeline.timeout_s)
        group, _ = dist.new_subgroups_by_enumeration(members, timeout, "gloo")
        self._process_groups.append(group)
        return group

    def close(self) -> None:
        """End the process groups, and remove what replicas have added to the blocks."""
        if self.peers is not None:
            self.peers.close()
        for group in self._process_groups:
            dist.destroy_process_group(group)

    # ---- blocks and links ------------------------------------------------------------------------------

    @torch.enable_grad()
    def assign(self, cascade: Cascade, example: ExampleBatch) -> None:
        """Split the blocks into groups, and make the links.

        Raises:
            BadValue: If several workers cannot train this cascade.
        """
        check_pipelined(cascade, self.size, self.pipeline.groups)
        rows, target = example()
        if self.peers is not None:
            check_replicated(cascade)
            # The first replica's part is the largest: its messages must fit on every link.
            first = Replicas(self.peers.group, 0, self.replicas)
            rows, target = first.batch_part(rows, target, cascade.encoding.views)
        message = cascade.encoding.message()
        groups = self.pipeline.groups
        if groups is None:
            groups = balanced_groups(block_costs(cascade, rows, target, message), self.size)
        # The first worker's groups: the costs may be computed differently elsewhere.
        self.groups = self.all_gather(groups)[0]
        self._bounds = [sum(self.groups[:k]) for k in range(self.size + 1)]
        self._n_losses = [len(block.losses) for block in cascade.units]
        self._connect(*self._capacities(cascade, rows, message))
        if self.peers is not None:
            self.peers.average_gradients(cascade.units[slice(*self.block_range(0, len(cascade.units)))])

    def _connect(self, up: Sequence[int], down: Sequence[int]) -> None:
        """Make the links, which take tensors of so many bytes."""
        pipeline, above, below = self.pipeline, self.rank + 1, self.rank - 1
        # Feedback has a process group of its own, because a thread of its own receives it, and room for as
        # many messages as can be in flight.
        ahead, group = 2 * pipeline.queue + 2, self._new_group(self._pipelines) if any(down) else None
        self.neighbors = LinkedNeighbors(self.check_stop, staleness=pipeline.staleness)
        if self.rank > 0:
            self.neighbors.inputs = Receiver(self.group, below, up[below], pipeline.queue, self.device)
        if above < self.size:
            self.neighbors.outputs = Sender(self.group, above, up[self.rank], pipeline.queue, store=False)
            self.neighbors.above = True
        if self.rank > 0 and down[below]:
            self.neighbors.feedback_below = Sender(group, below, down[below], ahead, store=False)
        if above < self.size and down[self.rank]:
            receiver = Receiver(group, above, down[self.rank], ahead, self.device)
            self.neighbors.feedback_above = NewestReceiver(receiver)

    @torch.no_grad()
    def _capacities(
        self, cascade: Cascade, rows: Rows, message: Tensor | None
    ) -> tuple[list[int], list[int]]:
        """Bytes of the largest tensor that each link takes upwards, and downwards; 0 without feedback."""
        units, training = cascade.units, cascade.training
        cascade.eval()
        up, down = [], []
        for first, stop in zip(self._bounds[:-1], self._bounds[1:], strict=True):
            if first:
                _, sent = send_feedback(units[first:], message)
                down.append(_n_bytes(sent))
            for block in units[first:stop]:
                rows = block.next_input(rows)
            up.append(_n_bytes(rows))
        cascade.train(training)
        return up, down

    def block_range(self, first: int, stop: int) -> tuple[int, int]:
        return max(first, self._bounds[self.rank]), min(stop, self._bounds[self.rank + 1])

    def split_rows(self, rows: RowsFunction[P], views: int) -> RowsFunction[P]:
        return rows if self.peers is None else self.peers.split_rows(rows, views)

    def wrap_step(self, step: StepFunction[P], index: int) -> StepFunction[P]:
        indices = count(index)
        if self.peers is not None:
            step = self.peers.wrap_step(step)

        def linked_step(*args: P.args, **kwargs: P.kwargs) -> Tensor:
            self.neighbors.begin_step(next(indices))
            return step(*args, **kwargs)

        return linked_step

    # ---- a run -----------------------------------------------------------------------------------------

    def begin_run(self, index: int, save: Callable[[], None] | None) -> None:
        if self.neighbors.outputs is not None:
            self.neighbors.outputs.store = True
        self.synchronize(index, save)

    def begin_epoch(self, positions: Sequence[int], stop: int) -> None:
        index, neighbors = positions[self.rank], self.neighbors
        if neighbors.inputs is not None:
            neighbors.inputs.expect(index, stop)
        if neighbors.feedback_above is not None:
            neighbors.feedback_above.expect(positions[self.rank + 1], stop)
        if neighbors.outputs is not None:
            neighbors.outputs.first_needed = positions[self.rank + 1]
            neighbors.outputs.resend(positions[self.rank + 1], index)

    def checkpoint_due(self, index: int, elapsed: bool) -> bool:
        """Whether to write a checkpoint: a little later than the worker above, which surely has written then.

        A send completes when the receiver has posted its receive, at most ``queue`` batches ahead. So a
        worker that begins step t knows that the one above has taken all steps before ``t - 2 queue - 1``.
        """
        margin = 2 * self.pipeline.queue + 2
        delay = (self.size - 1 - self.rank) * margin
        if index <= delay or (index - delay) % self.pipeline.save_every:
            return False
        if self.neighbors.outputs is not None:
            self.neighbors.outputs.discard(index - margin)
        return True

    def synchronize(self, index: int, save: Callable[[], None] | None) -> None:
        if self.neighbors.feedback_above is not None:
            self.neighbors.feedback_above.drain()
        if save is None:
            return
        # From the top down: when a worker writes, the messages that it has stored are no longer needed.
        above, below = self.rank + 1, self.rank - 1
        signal = torch.zeros(1)
        if above < self.size:
            call_peer(above, lambda: dist.recv(signal, group=self.group, tag=SAVED, group_src=above))
        if self.neighbors.outputs is not None:
            self.neighbors.outputs.discard(index)
        save()
        if below >= 0:
            call_peer(below, lambda: dist.send(signal, group=self.group, tag=SAVED, group_dst=below))

    def reduce_losses(self, values: Tensor) -> Tensor:
        total = torch.zeros(sum(self._n_losses), dtype=values.dtype)
        first, stop = (
            sum(self._n_losses[:k]) for k in (self._bounds[self.rank], self._bounds[self.rank + 1])
        )
        total[first:stop] = values.cpu()
        call_peer(self.rank, lambda: dist.all_reduce(total, group=self.world))
        return total

    def broadcast_weights(self, cascade: Cascade) -> None:
        for owner in range(self.size):
            blocks = cascade.units[self._bounds[owner] : self._bounds[owner + 1]]
            tensors = [tensor for block in blocks for tensor in block.state_dict().values()]
            if not tensors:
                continue
            flat = torch.cat([_bytes(tensor) for tensor in tensors])
            call_peer(owner, partial(dist.broadcast, flat, group=self.group, group_src=owner))
            if owner != self.rank:
                _copy_bytes(tensors, flat)

    def report_age(self) -> JsonObject:
        ages = [age for age in self.all_gather(self.neighbors.age) if age.steps]
        self.neighbors.age = Age()
        if not ages:
            return {}
        return {"age": {"mean": [a.total / a.steps for a in ages], "largest": [a.largest for a in ages]}}

    def all_gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * (self.size * self.replicas)
        call_peer(self.rank, lambda: dist.all_gather_object(values, value, group=self.world))
        return values

    # ---- checkpoints -----------------------------------------------------------------------------------

    def link_state(self) -> dict[str, Tensor]:
        stored = {} if self.neighbors.outputs is None else self.neighbors.outputs.stored
        tensors = {f"kept.{index}": message for index, message in stored.items()}
        feedback = self.neighbors.feedback_above
        if feedback is not None and feedback.latest is not None:
            message, step = feedback.latest
            tensors |= {"latest": message.cpu(), "latest_step": torch.tensor(step)}
        return tensors

    def load_link_state(self, groups: Sequence[int], tensors: dict[str, Tensor]) -> None:
        if list(groups) != list(self.groups):
            raise BadValue(
                f"pipeline.groups = {self.groups}: the run began with groups = {groups}; give these to "
                "continue it"
            )
        if self.neighbors.outputs is not None:
            self.neighbors.outputs.stored = {
                int(name.removeprefix("kept.")): tensor.cpu()
                for name, tensor in tensors.items()
                if name.startswith("kept.")
            }
        if self.neighbors.feedback_above is not None and "latest" in tensors:
            self.neighbors.feedback_above.latest = (tensors["latest"], int(tensors["latest_step"]))

    def gather_checkpoint(self, tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        if self.peers is None:
            return [tensors]
        gathered: list[Any] = [None] * self.replicas if self.replica == 0 else []
        group = self.peers.group
        call_peer(self.rank, lambda: dist.gather_object(tensors, gathered or None, group=group, group_dst=0))
        return gathered


def _n_bytes(rows: Rows | None) -> int:
    if rows is None:
        return 0
    assert isinstance(rows, Tensor)
    return rows.numel() * rows.element_size()


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu()


def _copy_bytes(tensors: Sequence[Tensor], flat: Tensor) -> None:
    """Copy ``flat``, the bytes of tensors like these, into them."""
    start = 0
    for tensor in tensors:
        stop = start + tensor.numel() * tensor.element_size()
        # A copy begins at an address that is aligned for every dtype.
        tensor.detach().copy_(flat[start:stop].clone().view(tensor.dtype).view(tensor.shape))
        start = stop
