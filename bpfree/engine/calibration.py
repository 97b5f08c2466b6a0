"""Statistics of the normalisation layers inside fronts, estimated once on the training data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from bpfree._rows import Rows
from bpfree.core.block import Block
from bpfree.engine.step import ascend


@torch.no_grad()
def calibrate(blocks: Sequence[Block], batches: Iterable[Rows]) -> None:
    """Estimate the running statistics of the batch normalisation inside the blocks' fronts, in one pass.

    Each is the average over all batches of the batch's own statistics. While it lasts, a front normalises by
    the batch, and so feeds the fronts above it what they will see; afterwards, by the averages alone. Layers
    that were handed over frozen and in evaluation mode keep the statistics that they came with.

    Args:
        blocks: All blocks, bottom first; nothing but those statistics changes.
        batches: Input rows of the lowest, ``[rows, ...]`` each; asked for only if there is something to do.
    """
    fronts = [block.front for block in blocks if block.front is not None]
    norms = [m for front in fronts for m in front.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    held = {m for block in blocks for part in block.held for m in part.modules()}
    norms = [norm for norm in norms if norm.track_running_stats and norm not in held]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
        norm.train()
    for rows in batches:
        ascend(blocks, rows)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
