"""A link between two workers: tensors with a header, in order, with a bounded number in flight."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from bpfree._errors import BpfreeError, LinkError, WorkerLost

#: Numbers in a header: step, dtype, number of dimensions, and up to 13 sizes. They fill 128 bytes, so that
#: the tensor behind them is aligned as torch aligns its own: products may be summed in another order
#: elsewhere.
HEADER = 16
_BYTES = 8 * HEADER
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8)

T = TypeVar("T")


def pack(index: int, tensor: Tensor, capacity: int) -> Tensor:
    """A message, ``[128 + capacity]`` bytes in host memory: a header, the tensor, and padding.

    Args:
        index: Number of the step.
        tensor: The tensor to send.
        capacity: Bytes of the largest tensor that the link takes.

    Raises:
        LinkError: If the tensor is larger, or the header cannot represent its dtype or shape.
    """
    size = tensor.numel() * tensor.element_size()
    if size > capacity or tensor.dtype not in _DTYPES or tensor.ndim > HEADER - 3:
        raise LinkError(
            f"step {index}: a {tensor.dtype} tensor of shape {list(tensor.shape)} ({size} bytes) does not "
            f"fit on a link of {capacity} bytes; the output of a block must not grow during training"
        )
    message = torch.empty(_BYTES + capacity, dtype=torch.uint8)
    numbers = [index, _DTYPES.index(tensor.dtype), tensor.ndim, *tensor.shape]
    message[:_BYTES].view(torch.int64)[: len(numbers)] = torch.tensor(numbers)
    message[_BYTES : _BYTES + size].copy_(tensor.detach().contiguous().reshape(-1).view(torch.uint8))
    return message


def unpack(message: Tensor, index: int, peer: int) -> Tensor:
    """The tensor in a message from worker ``peer``; it shares the memory of the message.

    Raises:
        LinkError: If it belongs to another step than ``index``, or its header is invalid.
    """
    header = message[:_BYTES].view(torch.int64).tolist()
    step, dtype, ndim, sizes = header[0], header[1], header[2], header[3:]
    if step != index:
        fault = "a repeat" if step < index else "a gap"
        raise LinkError(f"worker {peer} sent step {step} where step {index} was expected: {fault}")
    if not (0 <= dtype < len(_DTYPES) and 0 <= ndim <= len(sizes) and all(n >= 0 for n in sizes[:ndim])):
        raise LinkError(f"worker {peer} sent step {index} with an invalid header: {header}")
    shape = torch.Size(sizes[:ndim])
    size = shape.numel() * _DTYPES[dtype].itemsize
    if size > len(message) - _BYTES:
        raise LinkError(f"worker {peer} sent step {index} of shape {list(shape)}, larger than the link")
    return message[_BYTES : _BYTES + size].view(_DTYPES[dtype]).view(shape)


def worker_lost(peer: int, error: BaseException) -> WorkerLost:
    """The error for a worker ``peer`` that does not respond."""
    return WorkerLost(f"worker {peer} is gone ({str(error).splitlines()[0][:200]})")


class Sender:
    """The sending end of a link.

    A send completes when the receiver has posted its receive, so the sends in flight are those that the
    receiver is behind.

    Args:
        group: The process group.
        peer: Rank of the receiver in the group.
        capacity: Bytes of the largest tensor.
        queue: Number of sends in flight at which `make_room` waits.
        store: Whether messages are stored until `discard`, so that they can be sent again.
    """

    def __init__(self, group: Any, peer: int, capacity: int, queue: int, store: bool) -> None:
        self.group, self.peer, self.capacity = group, peer, capacity
        self.queue, self.store = queue, store
        #: Messages by step.
        self.stored: dict[int, Tensor] = {}
        #: Messages of earlier steps are not sent: the receiver has them.
        self.first_needed = 0
        self._in_flight: deque[tuple[Tensor, Any]] = deque()
        self._error: WorkerLost | None = None

    def __len__(self) -> int:
        """Number of sends in flight."""
        return len(self._in_flight)

    def make_room(self) -> None:
        """Wait until fewer than ``queue`` sends are in flight.

        Raises:
            WorkerLost: If the receiver is gone.
        """
        if self._error is not None:
            raise self._error
        while len(self._in_flight) >= self.queue:
            _, work = self._in_flight.popleft()
            call_peer(self.peer, work.wait)

    def send(self, index: int, tensor: Tensor) -> None:
        """Start to send the tensor of step ``index``; `make_room` raises if the receiver is gone."""
        message = pack(index, tensor, self.capacity)
        if self.store:
            self.stored[index] = message
        if index >= self.first_needed:
            self._post(message)

    def resend(self, first: int, stop: int) -> None:
        """Send the stored messages of steps ``first`` to ``stop - 1`` again.

        Raises:
            LinkError: If one is not stored.
        """
        missing = [index for index in range(first, stop) if index not in self.stored]
        if missing:
            raise LinkError(
                f"worker {self.peer} needs steps {first} to {stop - 1} again, and step {missing[0]} is not "
                "stored: the checkpoints of the workers do not belong to one run"
            )
        for index in range(first, stop):
            self.make_room()
            self._post(self.stored[index])

    def discard(self, before: int) -> None:
        """Discard the stored messages of steps earlier than ``before``."""
        for index in [i for i in self.stored if i < before]:
            del self.stored[index]

    def _post(self, message: Tensor) -> None:
        try:
            work = dist.isend(message, group=self.group, group_dst=self.peer)
        except RuntimeError as error:
            # The step is half done: it is completed, and the next one does not begin.
            self._error = worker_lost(self.peer, error)
            return
        self._in_flight.append((message, work))


class Receiver:
    """The receiving end of a link: posts receives before the messages are needed.

    Args:
        group: The process group.
        peer: Rank of the sender in the group.
        capacity: Bytes of the largest tensor.
        queue: Number of receives to post ahead.
        device: Device of the received tensors.
    """

    def __init__(self, group: Any, peer: int, capacity: int, queue: int, device: torch.device) -> None:
        self.group, self.peer, self.capacity = group, peer, capacity
        self.queue, self.device = queue, device
        #: The next step.
        self.next = 0
        self._to_post = 0
        self._posted: deque[tuple[Tensor, Any]] = deque()

    def __len__(self) -> int:
        """Number of posted receives."""
        return len(self._posted)

    def expect(self, first: int, stop: int) -> None:
        """Begin to receive the messages of steps ``first`` to ``stop - 1``."""
        self.next, self._to_post = first, stop - first
        self._post()

    def receive(self) -> Tensor:
        """The next tensor; waits for it.

        Raises:
            LinkError: If it belongs to another step.
            WorkerLost: If the sender is gone.
        """
        message, work = self._posted[0]
        call_peer(self.peer, work.wait)
        self._posted.popleft()
        self._post()
        tensor = unpack(message, self.next, self.peer)
        self.next += 1
        return tensor.to(self.device)

    def _post(self) -> None:
        while self._to_post and len(self._posted) < self.queue:
            message = torch.empty(_BYTES + self.capacity, dtype=torch.uint8)
            post = partial(dist.irecv, message, group=self.group, group_src=self.peer)
            self._posted.append((message, call_peer(self.peer, post)))
            self._to_post -= 1


class NewestReceiver:
    """The receiving end of a link of which only the newest message is used.

    A thread receives the messages: gloo cannot report without waiting whether one has arrived.

    Args:
        receiver: Receives the messages; used by the thread alone.
    """

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        #: The newest message, and the step before which it was sent.
        self.latest: tuple[Tensor, int] | None = None
        self._error: BpfreeError | None = None
        self._arrived = threading.Condition()
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        """Number of posted receives."""
        return len(self.receiver)

    def expect(self, first: int, stop: int) -> None:
        """Begin to receive the messages of steps ``first`` to ``stop - 1``."""
        self._thread = threading.Thread(target=self._receive_all, args=(first, stop), daemon=True)
        self._thread.start()

    def newest(self, index: int, staleness: int | None) -> tuple[Tensor, int]:
        """The newest message and its step.

        Args:
            index: Number of the current step.
            staleness: Largest allowed age in steps, which is waited for; None: any age.

        Raises:
            WorkerLost: If the sender is gone.
        """
        with self._arrived:
            while self.latest is None or (staleness is not None and index - self.latest[1] > staleness):
                if self._error is not None:
                    raise self._error
                self._arrived.wait()
            return self.latest

    def drain(self) -> None:
        """Wait until all expected messages have arrived.

        Raises:
            WorkerLost: If the sender is gone.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            raise self._error

    def _receive_all(self, first: int, stop: int) -> None:
        try:
            self.receiver.expect(first, stop)
            for step in range(first, stop):
                message = self.receiver.receive()
                with self._arrived:
                    self.latest = (message, step)
                    self._arrived.notify()
        except BpfreeError as error:
            # It is raised where the message is needed.
            with self._arrived:
                self._error = error
                self._arrived.notify()


def call_peer(peer: int, call: Callable[[], T]) -> T:
    """Return ``call()``, an operation of `torch.distributed`.

    Raises:
        WorkerLost: If it fails, with the number of the worker ``peer``.
    """
    try:
        return call()
    except RuntimeError as error:
        raise worker_lost(peer, error) from error
