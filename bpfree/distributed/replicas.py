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
from bpfree.core.update_rules import Autograd, DifferentiableBlock, Objective, UpdateRule


def check_replicas(replicas: int, workers: int) -> None:
    """Check that a number of workers makes whole columns.

    Raises:
        BadValue: If not.
    """
    if workers % replicas:
        raise BadValue(
            f"pipeline.replicas = {replicas}: there are {workers} workers, which is no multiple of it; start "
            "as many as groups times replicas (torchrun --nproc-per-node)"
        )


def check_replicated(cascade: Cascade) -> None:
    """Check that the gradient of a batch is the mean of those of its parts, and that DDP can take it.

    Raises:
        BadValue: If not.
    """
    for block in cascade.units:
        for loss in block.losses:
            if not loss.by_row:
                raise BadValue(
                    f"pipeline.replicas: the value of {type(loss).__name__}, with these options, for a batch "
                    "is no mean of what it is for single rows, so parts of a batch teach something else; "
                    "leave replicas out (a loss of your own says by_row = True if it is such a mean)"
                )
        if not isinstance(block.rule, Autograd):
            raise BadValue(
                "pipeline.replicas: gradients are averaged while autograd makes them; use gradients = "
                "'autograd', or leave replicas out"
            )
        norms = [m for m in _learned(block) if isinstance(m, BATCH_NORMS)]
        if norms:
            raise BadValue(
                f"pipeline.replicas: {type(norms[0]).__name__} takes its statistics from all rows of a "
                "batch, and a replica sees a part of them; use another normalisation, or leave replicas out"
            )


BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def _learned(block: BaseBlock) -> list[nn.Module]:
    """The modules of a block but for those of fronts, which are fixed."""
    fronts = [b.front for b in block.modules() if isinstance(b, Block) and b.front is not None]
    fixed = {id(module) for front in fronts for module in front.modules()}
    return [module for module in block.modules() if id(module) not in fixed]


class Replicas:
    """The workers that train the same group of blocks.

    Args:
        group: Their process group.
        number: This one's number.
        n: How many there are.
    """

    def __init__(self, group: Any, number: int, n: int) -> None:
        self.group, self.number, self.n = group, number, n
        self.weight = 1.0
        self._wrapped: list[tuple[BaseBlock, UpdateRule[Any]]] = []

    def part(self, rows: Rows, target: Tensor, views: int) -> tuple[Rows, Tensor]:
        """This replica's part of a batch: neighbouring samples, in parts as equal as can be, larger first.

        It is noted what share of the samples that is. A replica for which none is left gets the first sample,
        with a share of 0: it takes part in the averages all the same.

        Args:
            rows: ``[views * B, ...]``, view by view.
            target: ``[views * B]``.
            views: How many rows stand for a sample.
        """
        n = len(target) // views
        share, rest = divmod(n, self.n)
        start = self.number * share + min(self.number, rest)
        stop = start + share + (self.number < rest)
        self.weight = (stop - start) / n
        if start == stop:
            start, stop = 0, 1
        return take_samples(rows, views, start, stop), take_samples(target, views, start, stop)

    def average(self, blocks: Sequence[BaseBlock]) -> None:
        """From now on, until `close`, average the gradients of these blocks over the replicas.

        Their parameters and buffers are made those of the first.
        """
        for block in blocks:
            self._wrapped.append((block, block.rule))
            averaged = DistributedDataParallel(
                _Objective(block),
                process_group=self.group,
                # Otherwise the parameters change places after the first step, and so the order of sums: a
                # run that is taken up would have other bits.
                find_unused_parameters=True,
            )
            # What a block's losses count is the same everywhere; at the start it was sent to all.
            averaged.broadcast_buffers = False
            averaged.register_comm_hook(None, self._weighed)
            block.rule = AveragedAutograd(averaged)

    def close(self) -> None:
        """Leave the blocks as they were found."""
        for block, rule in self._wrapped:
            block.rule = rule
        self._wrapped = []

    @contextmanager
    def working(self) -> Iterator[None]:
        """Inside, a replica that is gone is told of by `WorkerLost`."""
        try:
            yield
        except RuntimeError as error:
            # It comes out of the backward pass, where anything may fail.
            if isinstance(error, WorkerLost) or not _is_connection(error):
                raise
            raise WorkerLost(f"a replica is gone ({str(error).splitlines()[0][:200]})") from error

    def _weighed(self, state, bucket):  # type: ignore[no-untyped-def] # DDP refuses annotations in words
        """What DDP does with a bucket of gradients: their sum, each by the share of its replica."""
        total = dist.all_reduce(bucket.buffer().mul_(self.weight), group=self.group, async_op=True)
        return total.get_future().then(lambda future: future.value()[0])


class _Objective(nn.Module):
    """A block's body and loss as one module, as DDP needs it; the output has no part in the gradient."""

    def __init__(self, block: BaseBlock) -> None:
        super().__init__()
        self.block = block
        # DDP complains if it is told to look for unused parameters and there are none.
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

    def objective(
        self, block: DifferentiableBlock, front_output: Rows, target: Tensor, feedback: Tensor | None
    ) -> Objective:
        result: Objective = self.averaged(front_output, target, feedback)
        return result


def _is_connection(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error)
