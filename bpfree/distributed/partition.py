"""Which blocks each worker trains, and which cascades several workers can train."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from bpfree._errors import BadValue
from bpfree._rows import Rows
from bpfree.core.block import BaseBlock, send_feedback
from bpfree.core.cascade import Cascade
from bpfree.losses import StatefulFeedbackLoss
from bpfree.nn import counted_modules


def block_costs(cascade: Cascade, rows: Rows, target: Tensor, message: Tensor | None) -> list[float]:
    """Operations of one step of each block: forward, loss with its head, and backward, as torch counts them.

    The steps are taken by a copy of the cascade, which does not change.

    Args:
        cascade: The blocks.
        rows: Input rows of the first block.
        target: Their targets.
        message: Feedback message for the highest block.
    """
    from torch.utils.flop_counter import FlopCounterMode

    blocks: Sequence[BaseBlock] = copy.deepcopy(cascade).eval().units
    costs = []
    feedback, _ = send_feedback(blocks, message)
    for block, from_above in zip(blocks, feedback, strict=True):
        rows = block.concat_feedback(rows, from_above)
        with FlopCounterMode(display=False) as counter:
            _, total, output = block.objective(block.run_front(rows), target, from_above)
            if total.requires_grad:
                with torch.autocast(target.device.type, enabled=False):
                    total.backward()
        rows = block.next_input(rows, output.detach())
        # Other operations than products cost something, too: a block without any product is not free.
        costs.append(float(counter.get_total_flops() + output.numel()))
    return costs


def balanced_groups(costs: Sequence[float], n: int) -> list[int]:
    """Split blocks into ``n`` groups of adjacent blocks so that the largest sum of costs is smallest.

    Returns:
        Number of blocks in each group, at least one.
    """
    best: dict[tuple[int, int], tuple[float, list[int]]] = {(0, 0): (0.0, [])}
    for stop in range(1, len(costs) + 1):
        for k in range(1, n + 1):
            options = [
                (max(best[first, k - 1][0], sum(costs[first:stop])), [*best[first, k - 1][1], stop - first])
                for first in range(stop)
                if (first, k - 1) in best
            ]
            if options:
                best[stop, k] = min(options)
    return best[len(costs), n][1]


def check_pipelined(cascade: Cascade, n: int, groups: Sequence[int] | None) -> None:
    """Check that ``n`` workers can train a cascade.

    Raises:
        BadValue: If they cannot.
    """
    units, several = cascade.units, "schedule = 'pipelined' with several workers"
    if n > len(units):
        raise BadValue(
            f"schedule = 'pipelined' with {n} workers: expected at most {len(units)}, the number of blocks; "
            "start fewer (torchrun --nproc-per-node), or cut the network into more blocks"
        )
    if groups is not None and (len(groups) != n or sum(groups) != len(units)):
        raise BadValue(
            f"pipeline.groups = {list(groups)}: expected {n} numbers, one for each worker, "
            f"whose sum is {len(units)}, the number of blocks"
        )
    if cascade.encoding.transductive:
        raise BadValue(
            f"{several}: the nodes of a graph cannot be split into batches of independent samples; use "
            "'greedy' or 'simultaneous'"
        )
    learning = [name for name in cascade.readouts if cascade.readout(name).learns]
    if learning:
        raise BadValue(
            f"{several}: the readout {learning[0]!r} is trained on the outputs of all blocks at every step, "
            "which no worker has; leave it out (for forward_forward: readout = 'goodness', classifier = "
            "false)"
        )
    if any(counted_modules(block) for block in units):
        raise BadValue(
            f"{several}: each worker would send rows to the devices in the fronts; use 'greedy' or "
            "'simultaneous'"
        )
    if any(isinstance(loss, StatefulFeedbackLoss) for loss in cascade.losses):
        raise BadValue(
            f"{several}: the feedback of these losses depends on the last batch; use 'simultaneous'"
        )
