"""The connections of a worker to the workers that train the blocks above and below its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from bpfree._rows import Rows
from bpfree.distributed.links import NewestReceiver, Receiver, Sender


class Neighbors:
    """The connections of a worker that trains all blocks: there are none.

    Attributes:
        above: Whether another worker needs the output of the highest block.
    """

    above: bool = False

    def receive_feedback(self, message: Tensor | None) -> Tensor | None:
        """The feedback message for the highest block.

        Args:
            message: What the encoding sends to the top of the network.
        """
        return message

    def send_feedback(self, message: Tensor | None) -> None:
        """Send the feedback message of the lowest block to the worker below."""

    def receive_inputs(self, rows: Rows) -> Rows:
        """The input rows of the lowest block.

        Args:
            rows: The input of the network.
        """
        return rows

    def send_outputs(self, rows: Rows) -> None:
        """Send the output of the highest block to the worker above."""


@dataclass
class Age:
    """The age of feedback messages when they are used, in steps between sending and use.

    Attributes:
        steps: Number of messages.
        total: Sum of their ages.
        largest: The largest age.
    """

    steps: int = 0
    total: int = 0
    largest: int = 0

    def add(self, age: int) -> None:
        """Count one message."""
        self.steps, self.total, self.largest = self.steps + 1, self.total + age, max(self.largest, age)


@dataclass
class LinkedNeighbors(Neighbors):
    """Connections over links to the workers above and below.

    Attributes:
        check_stop: Raises `WorkerLost` if the process has received SIGTERM; called between two steps.
        inputs: Receives input rows from the worker below; None for the lowest worker.
        outputs: Sends output rows to the worker above; None for the highest worker.
        feedback_below: Sends feedback to the worker below; None where there is no feedback.
        feedback_above: Receives feedback from the worker above; None where there is no feedback.
        staleness: Largest allowed age of a feedback message; None: any age.
        age: Ages of the messages that were used since the last report.
        index: Number of the current step.
    """

    check_stop: Callable[[], None]
    inputs: Receiver | None = None
    outputs: Sender | None = None
    feedback_below: Sender | None = None
    feedback_above: NewestReceiver | None = None
    staleness: int | None = None
    age: Age = field(default_factory=Age)
    index: int = 0

    def __post_init__(self) -> None:
        self.above = self.outputs is not None

    def begin_step(self, index: int) -> None:
        """Begin step ``index``, counted over all epochs of a stage; waits until the links can take its sends.

        Raises:
            WorkerLost: If a neighbor is gone, or this process has received SIGTERM.
        """
        self.check_stop()
        self.index = index
        if self.outputs is not None:
            self.outputs.make_room()
        if self.feedback_below is not None:
            self.feedback_below.make_room()

    def receive_feedback(self, message: Tensor | None) -> Tensor | None:
        if self.feedback_above is None:
            return message
        newest, step = self.feedback_above.newest(self.index, self.staleness)
        self.age.add(self.index - step)
        return newest

    def send_feedback(self, message: Tensor | None) -> None:
        if self.feedback_below is not None:
            assert message is not None
            self.feedback_below.send(self.index, message)

    def receive_inputs(self, rows: Rows) -> Rows:
        return rows if self.inputs is None else self.inputs.receive()

    def send_outputs(self, rows: Rows) -> None:
        if self.outputs is not None:
            assert isinstance(rows, Tensor)
            self.outputs.send(self.index, rows)
