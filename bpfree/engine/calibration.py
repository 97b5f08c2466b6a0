"""Statistics of the normalization layers inside fronts, estimated once on the training data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from bpfree._rows import Rows
from bpfree.core.block import BaseBlock
from bpfree.engine.step import forward


@torch.no_grad()
def calibrate(blocks: Sequence[BaseBlock], batches: Iterable[Rows]) -> None:
    """Estimate the running statistics of the batch normalization inside the blocks' fronts, in one pass.

    Each is the average of the statistics of all batches. During the pass a front normalizes by the batch;
    afterwards, by the averages. Layers that were passed frozen and in evaluation mode keep their statistics.

    Args:
        blocks: All blocks, bottom first. Only those statistics change.
        batches: Inputs of the lowest block, ``[rows, ...]`` each. Iterated over only if there is something to
            estimate.
    """
    fronts = [block.front for block in blocks if block.front is not None]
    norms = [m for front in fronts for m in front.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    held = {m for block in blocks for part in block.parts for held in part.held for m in held.modules()}
    norms = [norm for norm in norms if norm.track_running_stats and norm not in held]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
        norm.train()
    for rows in batches:
        forward(blocks, rows)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
