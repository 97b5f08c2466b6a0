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
    """Estimate the running statistics of batch normalization layers in the blocks' fronts, in one pass.

    The result is the average of the statistics of all batches. During the pass a layer normalizes by the
    statistics of the batch, and afterwards by the averages. The statistics of layers that were frozen and in
    evaluation mode when the network was passed do not change.

    Args:
        blocks: All blocks, bottom first. Nothing else in them changes.
        batches: Inputs of the lowest block, ``[rows, ...]`` each. Not iterated over if there are no such
            layers.
    """
    fronts = [block.front for block in blocks if block.front is not None]
    norms = [m for front in fronts for m in front.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    frozen = {m for block in blocks for part in block.parts for f in part.frozen for m in f.modules()}
    norms = [norm for norm in norms if norm.track_running_stats and norm not in frozen]
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
