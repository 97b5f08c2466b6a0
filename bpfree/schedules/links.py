"""One link between two workers: messages with a header, in order, at most a few on the way."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bpfree._errors import BpfreeError, LinkError, WorkerLost

#: Numbers in a header: step, type, number of dimensions, and up to 13 sizes. They fill 128 bytes, so what
#: follows is aligned as torch aligns its own memory: elsewhere products may add up in another order.
HEADER = 16
_BYTES = 8 * HEADER
_TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8)


def pack(index: int, rows: Tensor, capacity: int) -> Tensor:
    """A message, ``[128 + capacity]`` bytes in host memory: a header, the tensor, and room to spare.

    Args:
        index: Number of the step.
        rows: What is sent.
        capacity: Bytes of the largest tensor that the link takes.

    Raises:
        LinkError: If the tensor is larger, or of a type or shape that no header can tell.
    """
    size = rows.numel() * rows.element_size()
    if size > capacity or rows.dtype not in _TYPES or rows.ndim > HEADER - 3:
        raise LinkError(
            f"step {index}: a {rows.dtype} tensor of shape {list(rows.shape)} ({size} bytes) does not fit on "
            f"a wire that was laid for {capacity} bytes: a block's output must not grow while it trains"
        )
    message = torch.empty(_BYTES + capacity, dtype=torch.uint8)
    numbers = [index, _TYPES.index(rows.dtype), rows.ndim, *rows.shape]
    message[:_BYTES].view(torch.int64)[: len(numbers)] = torch.tensor(numbers)
    message[_BYTES : _BYTES + size].copy_(rows.detach().contiguous().reshape(-1).view(torch.uint8))
    return message


def unpack(message: Tensor, index: int, peer: int) -> Tensor:
    """The tensor in a message from worker ``peer``, which shares its memory.

    Raises:
        LinkError: If it is not of step ``index``, or its header cannot be true.
    """
    header = message[:_BYTES].view(torch.int64).tolist()
    found, kind, ndim, shape = header[0], header[1], header[2], header[3:]
    if found != index:
        what = "a repeat" if found < index else "a gap"
        raise LinkError(f"worker {peer} sent step {found} where step {index} was expected: {what}")
    if not (0 <= kind < len(_TYPES) and 0 <= ndim <= len(shape) and all(n >= 0 for n in shape[:ndim])):
        raise LinkError(f"worker {peer} sent step {index} with a header that cannot be: {header}")
    rows = torch.Size(shape[:ndim])
    size = rows.numel() * _TYPES[kind].itemsize
    if size > len(message) - _BYTES:
        raise LinkError(f"worker {peer} sent step {index} of shape {list(rows)}, more than the wire holds")
    return message[_BYTES : _BYTES + size].view(_TYPES[kind]).view(rows)


def lost(peer: int, error: BaseException) -> WorkerLost:
    """What is raised where worker ``peer`` does not answer any more."""
    return WorkerLost(f"worker {peer} is gone ({str(error).splitlines()[0][:200]})")


class Outlet:
    """The sending end.

    A send ends when the receiver has asked for it, so those under way are what it is behind.

    Args:
        group: The process group.
        peer: Rank of the receiver in the group.
        capacity: Bytes of the largest tensor.
        queue: Sends that may be under way before `make_room` waits.
        keep: Whether messages are kept, to be sent again, until `forget`.
    """

    def __init__(self, group: Any, peer: int, capacity: int, queue: int, keep: bool) -> None:
        self.group, self.peer, self.capacity = group, peer, capacity
        self.queue, self.keep = queue, keep
        self.kept: dict[int, Tensor] = {}
        #: Messages of earlier steps are not wanted: the receiver has had them.
        self.wanted_from = 0
        self._under_way: deque[tuple[Tensor, Any]] = deque()
        self._broken: WorkerLost | None = None

    def __len__(self) -> int:
        return len(self._under_way)

    def make_room(self) -> None:
        """Wait until fewer than ``queue`` sends are under way.

        Raises:
            WorkerLost: If the receiver is gone.
        """
        if self._broken is not None:
            raise self._broken
        while len(self._under_way) >= self.queue:
            self._wait()

    def send(self, index: int, rows: Tensor) -> None:
        """Start to send; a receiver that is gone is told of by the next `make_room`."""
        message = pack(index, rows, self.capacity)
        if self.keep:
            self.kept[index] = message
        if index >= self.wanted_from:
            self._post(message)

    def resend(self, first: int, stop: int) -> None:
        """Send the kept messages of steps ``first`` to ``stop - 1`` once more.

        Raises:
            LinkError: If one is not kept.
        """
        missing = [index for index in range(first, stop) if index not in self.kept]
        if missing:
            raise LinkError(
                f"worker {self.peer} asks for steps {first} to {stop - 1} again, of which {missing[0]} is "
                "not kept: the workers' checkpoints are not of one run"
            )
        for index in range(first, stop):
            self.make_room()
            self._post(self.kept[index])

    def forget(self, before: int) -> None:
        """Keep no message of a step earlier than ``before``."""
        for index in [i for i in self.kept if i < before]:
            del self.kept[index]

    def _post(self, message: Tensor) -> None:
        try:
            work = dist.isend(message, group=self.group, group_dst=self.peer)
        except RuntimeError as error:
            # The step that sends is half taken: it is finished, and the next one does not begin.
            self._broken = lost(self.peer, error)
            return
        self._under_way.append((message, work))

    def _wait(self) -> None:
        _, work = self._under_way.popleft()
        wait(work, self.peer)


class Inlet:
    """The receiving end: asks for messages before they are needed.

    Args:
        group: The process group.
        peer: Rank of the sender in the group.
        capacity: Bytes of the largest tensor.
        queue: Messages to ask for ahead.
        device: Where tensors are needed.
    """

    def __init__(self, group: Any, peer: int, capacity: int, queue: int, device: torch.device) -> None:
        self.group, self.peer, self.capacity = group, peer, capacity
        self.queue, self.device = queue, device
        self.next = 0
        self._to_ask = 0
        self._asked: deque[tuple[Tensor, Any]] = deque()

    def __len__(self) -> int:
        return len(self._asked)

    def expect(self, first: int, stop: int) -> None:
        """The steps ``first`` to ``stop - 1`` will come, and no more before the next call."""
        self.next, self._to_ask = first, stop - first
        self._ask()

    def take(self) -> Tensor:
        """The next tensor, waited for.

        Raises:
            LinkError: If it is not of the step that is due.
            WorkerLost: If the sender is gone.
        """
        message, work = self._asked[0]
        wait(work, self.peer)
        self._asked.popleft()
        self._ask()
        rows = unpack(message, self.next, self.peer)
        self.next += 1
        return rows.to(self.device)

    def _ask(self) -> None:
        while self._to_ask and len(self._asked) < self.queue:
            message = torch.empty(_BYTES + self.capacity, dtype=torch.uint8)
            ask = partial(dist.irecv, message, group=self.group, group_src=self.peer)
            work = guarded(self.peer, ask)
            self._asked.append((message, work))
            self._to_ask -= 1


class Newest:
    """The receiving end of messages of which the newest alone counts.

    A thread takes them as they come: gloo does not tell whether one is here without waiting for it.

    Args:
        inlet: Where they come from; asked by the thread alone.
    """

    def __init__(self, inlet: Inlet) -> None:
        self.inlet = inlet
        #: The newest message, and the step before which it was sent.
        self.latest: tuple[Tensor, int] | None = None
        self._failed: BpfreeError | None = None
        self._came = threading.Condition()
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self.inlet)

    def expect(self, first: int, stop: int) -> None:
        """The messages of steps ``first`` to ``stop - 1`` will come."""
        self._thread = threading.Thread(target=self._listen, args=(first, stop), daemon=True)
        self._thread.start()

    def get(self, index: int, staleness: int | None) -> tuple[Tensor, int]:
        """The newest message and its step, waited for until it is no older than ``staleness`` at ``index``.

        Raises:
            WorkerLost: If the sender is gone.
        """
        with self._came:
            while self.latest is None or (staleness is not None and index - self.latest[1] > staleness):
                if self._failed is not None:
                    raise self._failed
                self._came.wait()
            return self.latest

    def drain(self) -> None:
        """Wait until all expected messages have come.

        Raises:
            WorkerLost: If the sender is gone.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failed is not None:
            raise self._failed

    def _listen(self, first: int, stop: int) -> None:
        try:
            self.inlet.expect(first, stop)
            for step in range(first, stop):
                message = self.inlet.take()
                with self._came:
                    self.latest = (message, step)
                    self._came.notify()
        except BpfreeError as error:
            # It is raised where the message is needed.
            with self._came:
                self._failed = error
                self._came.notify()


def wait(work: Any, peer: int) -> None:
    """Wait for a send or a receive.

    Raises:
        WorkerLost: If the peer is gone.
    """
    guarded(peer, work.wait)


def guarded(peer: int, call: Callable[[], Any]) -> Any:
    """What ``call`` returns; its failure is told as the loss of worker ``peer``."""
    try:
        return call()
    except RuntimeError as error:
        raise lost(peer, error) from error
