"""What joins a row of blocks to the rows above and below it: nothing, or links to other workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from bpfree._rows import Rows
from bpfree.distributed.links import Inlet, Newest, Outlet


class Wires:
    """The wires of blocks that have no others above and below them: each ends where it begins."""

    #: Whether anybody waits for what the highest block sends up.
    above: bool = False

    def begin(self, index: int) -> None:
        """Step ``index`` of the run begins, counted over all epochs."""

    def from_above(self, message: Tensor | None) -> Tensor | None:
        """The message for the highest block; ``message`` is what the encoding sends to the top of the net."""
        return message

    def to_below(self, message: Tensor | None) -> None:
        """Take what the lowest block sends down."""

    def from_below(self, rows: Rows) -> Rows:
        """The input of the lowest block; ``rows`` is that of the bottom of the net."""
        return rows

    def to_above(self, rows: Rows) -> None:
        """Take what the highest block sends up."""


@dataclass
class Age:
    """How old the messages from above were that steps have used: steps of the sender they did not know."""

    steps: int = 0
    total: int = 0
    largest: int = 0

    def add(self, age: int) -> None:
        """Count one."""
        self.steps, self.total, self.largest = self.steps + 1, self.total + age, max(self.largest, age)


@dataclass
class LinkedWires(Wires):
    """Wires to the workers above and below.

    Attributes:
        check: Raises where the worker has been told to stop; called between two steps.
        below: Where rows come from; None for the lowest worker.
        up: Where rows go; None for the highest.
        down: Where messages for the worker below go; None where there are none.
        top: Where messages from above come from; None where there are none.
        staleness: How old a message may be; None: any age.
        age: Of the messages used since the last report.
        index: The step that is being taken.
    """

    check: Callable[[], None]
    below: Inlet | None = None
    up: Outlet | None = None
    down: Outlet | None = None
    top: Newest | None = None
    staleness: int | None = None
    age: Age = field(default_factory=Age)
    index: int = 0

    def __post_init__(self) -> None:
        self.above = self.up is not None

    def begin(self, index: int) -> None:
        self.check()
        self.index = index
        if self.up is not None:
            self.up.make_room()
        if self.down is not None:
            self.down.make_room()

    def from_above(self, message: Tensor | None) -> Tensor | None:
        if self.top is None:
            return message
        newest, step = self.top.get(self.index, self.staleness)
        self.age.add(self.index - step)
        return newest

    def to_below(self, message: Tensor | None) -> None:
        if self.down is not None:
            assert message is not None
            self.down.send(self.index, message)

    def from_below(self, rows: Rows) -> Rows:
        return rows if self.below is None else self.below.take()

    def to_above(self, rows: Rows) -> None:
        if self.up is not None:
            assert isinstance(rows, Tensor)
            self.up.send(self.index, rows)
