"""The workers of a run: the interface, and one worker that trains all blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ParamSpec, TypeVar

from annotated_types import Ge, Gt
from torch import Tensor

from bpfree._rows import Rows
from bpfree._settings import STRICT
from bpfree._types import JsonObject
from bpfree.core.cascade import Cascade
from bpfree.distributed.neighbors import Neighbors

#: Returns the input rows of the first block and their targets, for one batch of the training size.
ExampleBatch = Callable[[], tuple[Rows, Tensor]]

#: Returns the input rows and targets of a training step.
P = ParamSpec("P")
RowsFunction = Callable[P, tuple[Rows, Tensor]]

#: Takes a training step; returns the losses, ``[n_losses]``.
StepFunction = Callable[P, Tensor]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Settings of a pipelined run. The trained weights do not depend on them.

    The exception is ``staleness``, for losses that take feedback from a block of another worker.

    Attributes:
        groups: Number of blocks of each worker, bottom first; None: the groups whose largest number of
            operations is smallest.
        replicas: Workers that train the same group, each on a part of every batch. A run has ``replicas``
            workers for each group; see `bpfree.distributed.replicas`.
        queue: Batches that may wait at either end of a link.
        staleness: Largest age of a feedback message in steps. With 0 a worker waits for the newest one, which
            gives the bits of the simultaneous schedule; None: any age.
        save_every: Batches between two checkpoints of a worker. With a checkpoint, as many batches are stored
            in memory at each link.
        timeout_s: Seconds after which a worker that neither responds nor closes the connection counts as
            lost.
    """

    __pydantic_config__ = STRICT

    groups: list[Annotated[int, Ge(1)]] | None = None
    replicas: Annotated[int, Ge(1)] = 1
    queue: Annotated[int, Ge(1)] = 2
    staleness: Annotated[int, Ge(0)] | None = None
    save_every: Annotated[int, Ge(1)] = 200
    timeout_s: Annotated[float, Gt(0)] = 1800.0


class Workers:
    """The workers of a run, as one of them uses them; here a single worker that trains all blocks.

    Attributes:
        rank: Number of this worker's group of blocks, of ``size``.
        replica: Number among the workers that train the same group, of ``replicas``.
        label: Distinguishes the files of runs with different numbers of workers; empty for a single worker.
        groups: Number of blocks of each worker; empty for a single worker.
        neighbors: The connections to the workers that train the blocks above and below.
    """

    rank: int = 0
    size: int = 1
    replica: int = 0
    replicas: int = 1
    label: str = ""
    groups: Sequence[int] = ()
    neighbors: Neighbors = Neighbors()

    @property
    def several(self) -> bool:
        """Whether there is more than one worker."""
        return self.size * self.replicas > 1

    @property
    def is_first(self) -> bool:
        """Whether this is the worker that prints, warns and writes the finished run."""
        return self.rank == 0 and self.replica == 0

    # ---- blocks and batches ----------------------------------------------------------------------------

    def assign(self, cascade: Cascade, example: ExampleBatch) -> None:
        """Assign the blocks of ``cascade`` to the workers.

        Args:
            cascade: The blocks.
            example: Returns an example batch; called only if the assignment depends on it.
        """

    def block_range(self, first: int, stop: int) -> tuple[int, int]:
        """This worker's part of the blocks ``first`` to ``stop - 1``: its first, and one past its last."""
        return first, stop

    def split_rows(self, rows: RowsFunction[P], views: int) -> RowsFunction[P]:
        """The function that returns this worker's part of the rows of a step; here all of them.

        Args:
            rows: Returns all rows ``[views * B, ...]``, view by view, and their targets ``[views * B]``.
            views: Number of rows of a sample.
        """
        return rows

    def wrap_step(self, step: StepFunction[P], index: int) -> StepFunction[P]:
        """``step`` with the communication that surrounds it; here ``step`` itself.

        Args:
            step: Takes one training step on this worker's rows.
            index: Number of the next step, counted over all epochs of a stage.
        """
        return step

    # ---- a run -----------------------------------------------------------------------------------------

    def begin_run(self, index: int, save: Callable[[], None] | None) -> None:
        """Prepare a run with checkpoints.

        Args:
            index: Steps that have been taken.
            save: Writes the first checkpoint; None for a resumed run, which has one.
        """

    def begin_epoch(self, positions: Sequence[int], stop: int) -> None:
        """Begin or continue an epoch.

        Args:
            positions: Steps that each worker has taken.
            stop: Steps that every worker will have taken at the end of the epoch.
        """

    def checkpoint_due(self, index: int, elapsed: bool) -> bool:
        """Whether to write a checkpoint after ``index`` steps.

        Args:
            index: Steps that have been taken.
            elapsed: Whether the time between two checkpoints has passed.
        """
        return elapsed

    def synchronize(self, index: int, save: Callable[[], None] | None) -> None:
        """Wait until every worker has taken ``index`` steps.

        Args:
            index: Steps that this worker has taken.
            save: Writes a checkpoint from which every worker can continue; None: none is written.
        """

    def reduce_losses(self, values: Tensor) -> Tensor:
        """Values of the losses of all blocks, from the values of this worker's blocks."""
        return values

    def broadcast_weights(self, cascade: Cascade) -> None:
        """Copy the state of every block from its worker to all others; call it between two epochs."""

    def report_age(self) -> JsonObject:
        """Entries of the history's row about the age of feedback messages since the last report."""
        return {}

    def all_gather(self, value: T) -> list[T]:
        """``value`` of every worker: those of the first replicas by rank, then of the second, and so on."""
        return [value]

    # ---- checkpoints -----------------------------------------------------------------------------------

    def link_state(self) -> dict[str, Tensor]:
        """The messages on this worker's links, for its checkpoint."""
        return {}

    def load_link_state(self, groups: Sequence[int], tensors: dict[str, Tensor]) -> None:
        """Load the result of `link_state`.

        Args:
            groups: Number of blocks of each worker in the run that wrote the checkpoint.
            tensors: The result of `link_state`.

        Raises:
            BadValue: If the groups were different.
        """

    def gather_checkpoint(self, tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """``tensors`` of each replica of this worker's group, by number; complete on the first replica."""
        return [tensors]
