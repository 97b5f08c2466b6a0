"""Replicas of a group of blocks: each takes a part of every batch, and DDP averages their gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bpfree._errors import BadValue, WorkerLost
from bpfree._rows import Rows, take_samples
from bpfree.core.block import BaseBlock, Block
from bpfree.core.cascade import Cascade
from bpfree.core.update_rules import AnyRule, Autograd, DifferentiableBlock, Gradients, Objective
from bpfree.distributed.workers import P, RowsFunction, StepFunction

#: Normalizations whose statistics, and so whose gradients, depend on all rows of a batch.
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def check_replicas(replicas: int, workers: int) -> None:
    """Check that the number of workers is a multiple of the number of replicas.

    Raises:
        BadValue: If it is not.
    """
    if workers % replicas:
        raise BadValue(
            f"pipeline.replicas = {replicas}: there are {workers} workers, which is not a multiple of it; "
            "start groups times replicas workers (torchrun --nproc-per-node)"
        )


def check_replicated(cascade: Cascade) -> None:
    """Check that the gradient of a batch is the mean over its parts, and that DDP can average it.

    Raises:
        BadValue: If not.
    """
    for block in cascade.units:
        for loss in block.losses:
            if not loss.by_row:
                raise BadValue(
                    f"pipeline.replicas: the value of {type(loss).__name__}, with these options, for a batch "
                    "is not the mean over its rows, so the gradient of a batch is not the mean over its "
                    "parts; leave replicas out (a loss of your own sets by_row = True if it is such a mean)"
                )
        if not isinstance(block.rule, Autograd):
            raise BadValue(
                "pipeline.replicas: gradients are averaged during the backward pass of autograd; use "
                "gradients = 'autograd', or leave replicas out"
            )
        norms = [m for m in _trained_modules(block) if isinstance(m, BATCH_NORMS)]
        if norms:
            raise BadValue(
                f"pipeline.replicas: {type(norms[0]).__name__} takes its statistics from all rows of a "
                "batch, and a replica has a part of them; use another normalization, or leave replicas out"
            )


def _trained_modules(block: BaseBlock) -> list[nn.Module]:
    """The modules of a block without those of fronts, which are fixed."""
    fronts = [b.front for b in block.modules() if isinstance(b, Block) and b.front is not None]
    fixed = {id(module) for front in fronts for module in front.modules()}
    return [module for module in block.modules() if id(module) not in fixed]


class Replicas:
    """The workers that train the same group of blocks.

    Args:
        group: Their process group.
        number: Number of this worker among them.
        n: How many there are.
    """

    def __init__(self, group: Any, number: int, n: int) -> None:
        self.group, self.number, self.n = group, number, n
        #: This replica's share of the samples of the last batch.
        self.weight = 1.0
        self._wrapped: list[tuple[BaseBlock, AnyRule]] = []

    def batch_part(self, rows: Rows, target: Tensor, views: int) -> tuple[Rows, Tensor]:
        """This replica's part of a batch: adjacent samples, in parts as equal as possible, larger ones first.

        Sets `weight` to the share of the samples in this part. A replica without a sample gets the first one
        with weight 0, because it must take part in the averages.

        Args:
            rows: ``[views * B, ...]``, view by view.
            target: ``[views * B]``.
            views: Number of rows of a sample.
        """
        n = len(target) // views
        size, remainder = divmod(n, self.n)
        start = self.number * size + min(self.number, remainder)
        stop = start + size + (self.number < remainder)
        self.weight = (stop - start) / n
        if start == stop:
            start, stop = 0, 1
        return take_samples(rows, views, start, stop), take_samples(target, views, start, stop)

    def split_rows(self, rows: RowsFunction[P], views: int) -> RowsFunction[P]:
        """The function that returns `batch_part` of the rows and targets that ``rows`` returns."""

        def part_of_rows(*args: P.args, **kwargs: P.kwargs) -> tuple[Rows, Tensor]:
            return self.batch_part(*rows(*args, **kwargs), views)

        return part_of_rows

    def wrap_step(self, step: StepFunction[P]) -> StepFunction[P]:
        """``step`` with its losses multiplied by `weight`, so that their sum is the loss of the whole batch.

        It raises `WorkerLost` if another replica is gone.
        """

        def weighted_step(*args: P.args, **kwargs: P.kwargs) -> Tensor:
            with self._connection_errors():
                return step(*args, **kwargs) * self.weight

        return weighted_step

    def average_gradients(self, blocks: Sequence[BaseBlock]) -> None:
        """Average the gradients of ``blocks`` over the replicas until `close`.

        The parameters and buffers of the first replica are copied to the others.
        """
        for block in blocks:
            self._wrapped.append((block, block.rule))
            averaged = DistributedDataParallel(
                _Objective(block),
                process_group=self.group,
                # Otherwise the parameters change places after the first step, and so the order of sums: a
                # resumed run would have other bits.
                find_unused_parameters=True,
            )
            # Buffers of losses have the same values everywhere once the first replica's were copied.
            averaged.broadcast_buffers = False
            averaged.register_comm_hook(None, self._weighted_sum)
            block.rule = AveragedAutograd(averaged)

    def close(self) -> None:
        """Undo `average_gradients`."""
        for block, rule in self._wrapped:
            block.rule = rule
        self._wrapped = []

    @contextmanager
    def _connection_errors(self) -> Iterator[None]:
        """Raises `WorkerLost` where a connection to another replica fails inside."""
        try:
            yield
        except RuntimeError as error:
            # It is raised by the backward pass, which may fail for any other reason.
            if isinstance(error, WorkerLost) or not _is_connection_error(error):
                raise
            raise WorkerLost(f"a replica is gone ({str(error).splitlines()[0][:200]})") from error

    def _weighted_sum(self, state, bucket):  # type: ignore[no-untyped-def] # DDP refuses string annotations
        """Communication hook of DDP: the sum of a bucket of gradients, each times its replica's weight."""
        total = dist.all_reduce(bucket.buffer().mul_(self.weight), group=self.group, async_op=True)
        return total.get_future().then(lambda future: future.value()[0])


class _Objective(nn.Module):
    """A block's body and loss as one module, as DDP needs it; no gradient passes through the output."""

    def __init__(self, block: BaseBlock) -> None:
        super().__init__()
        self.block = block
        # DDP warns if `find_unused_parameters` is set and every parameter is used.
        self.unused = nn.Parameter(torch.zeros((), device=next(block.parameters()).device))

    def forward(self, front_output: Rows, target: Tensor, feedback: Tensor | None) -> Objective:
        losses, total, output = self.block.objective(front_output, target, feedback)
        return Objective(losses, total, output.detach())


class AveragedAutograd(Autograd):
    """`Autograd` through DDP, which averages the gradients over the replicas during the backward pass.

    Args:
        averaged: The block in DDP, see `_Objective`.
    """

    def __init__(self, averaged: DistributedDataParallel) -> None:
        self.averaged = averaged

    def gradients(
        self, block: DifferentiableBlock, front_output: Rows, target: Tensor, feedback: Tensor | None
    ) -> Gradients:
        return super().gradients(_AveragedBlock(block, self.averaged), front_output, target, feedback)


class _AveragedBlock:
    """A block whose objective is computed by DDP."""

    def __init__(self, block: DifferentiableBlock, averaged: DistributedDataParallel) -> None:
        self.losses, self.overwriting = block.losses, block.overwriting
        self.objective, self.learned_parameters = averaged.__call__, block.learned_parameters


def _is_connection_error(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error)
