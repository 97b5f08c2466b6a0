"""Memory of a training step against depth: 16 to 1024 residual blocks.

    python -m benchmarks.claims.depth_is_free

Blocks ``x + ReLU(W norm(x))`` are trained by Mono-Forward, and by backpropagation: plain, with square-root
checkpointing, and with gradients accumulated over 16 parts of the batch. Bytes saved for backward and FLOPs
are counted. The peak is that of all memory that PyTorch allocates during a step (activations, gradients,
scratch), not counting parameters, the two moments of Adam, and the batch. Nothing is timed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import bpfree
from benchmarks import claims
from benchmarks._checkpointing import square_root
from bpfree.meters import allocated_on_cpu, count_flops, saved_for_backward

TITLE = "Depth is free: the memory of a training step does not grow with the number of blocks"
HOLDS_IF = (
    "from 16 to 1024 residual blocks, bytes saved for backward and peak memory beyond parameters and "
    "optimizer state grow by at most 5 %; at 1024 blocks both are at least 16x below backpropagation with "
    "square-root checkpointing, at no more than 0.75x its FLOPs"
)
CLASSES, PARTS = 10, 16
Step = Callable[[Tensor, Tensor, int], object]


class Residual(nn.Module):
    """``x + ReLU(W norm(x) + b)``, ``[B, width]``; normalized, so that 1024 blocks stay finite."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.linear = bpfree.nn.RowNorm(), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.linear(self.norm(x)))


def accumulating(trainer: bpfree.Trainer) -> Step:
    """A step of a trainer with one block, with gradients accumulated over parts of the batch."""
    (block,) = trainer.cascade.train().units

    def step(x: Tensor, y: Tensor, number: int) -> None:  # noqa: ARG001 (as `Trainer.step`)
        for rows, target in zip(x.chunk(PARTS), y.chunk(PARTS), strict=True):
            (block.objective(rows, target, None).total * (len(rows) / len(x))).backward()
        assert block.optimizer is not None
        block.optimizer.step()
        block.optimizer.zero_grad()

    return step


def make(arm: str, width: int, blocks: int) -> tuple[bpfree.Trainer, Step]:
    """A trainer of a new network of this depth, and the function that takes a step."""
    torch.manual_seed(0)
    stages: list[nn.Module] = [Residual(width) for _ in range(blocks)]
    if arm == "square-root checkpointing":
        stages = square_root(stages, reentrant=True)
    net = nn.Sequential(*stages, nn.Linear(width, CLASSES))
    kind = bpfree.MonoForward if arm == "mono_forward" else bpfree.Backprop
    trainer = kind(net, progress=False)
    trainer.build((width,), CLASSES)
    return trainer, accumulating(trainer) if arm == "gradient accumulation" else trainer.step


def cost(arm: str, width: int, blocks: int, batch: int) -> dict[str, int]:
    """Saved bytes, peak bytes and FLOPs of a step, after a first step that creates the optimizer state."""
    _, step = make(arm, width, blocks)
    x, y = torch.rand(batch, width), torch.arange(batch) % CLASSES
    flops = count_flops(step, x, y, 0)
    with saved_for_backward() as saved:
        step(x, y, 1)
    with allocated_on_cpu() as allocated:
        step(x, y, 2)
    return {"saved": saved.peak_bytes, "peak": allocated.peak_bytes, "flops": flops}


ARMS = ("mono_forward", "backprop", "square-root checkpointing", "gradient accumulation")


def measure(width: int = 256, batch: int = 512, depths: tuple[int, int] = (16, 1024)) -> dict[str, Any]:
    """Count all arms at both depths.

    Args:
        width: Width of all blocks.
        batch: Samples of a step.
        depths: A small and a large number of blocks.
    """
    few, many = depths
    costs: dict[str, dict[str, dict[str, int]]] = {}
    for arm in ARMS:
        costs[arm] = {str(n): cost(arm, width, n, batch) for n in depths}
        for n in depths:
            found = costs[arm][str(n)]
            print(
                f"{arm}, {n} blocks: {found['saved'] / 2**20:.2f} MiB saved, {found['peak'] / 2**20:.2f} MiB "
                f"peak, {found['flops'] / 1e9:.2f} GFLOP",
                flush=True,
            )
    ours, theirs = costs["mono_forward"], costs["square-root checkpointing"][str(many)]
    growth = {key: ours[str(many)][key] / ours[str(few)][key] - 1 for key in ("saved", "peak")}
    below = {key: theirs[key] / ours[str(many)][key] for key in ("saved", "peak")}
    flops = ours[str(many)]["flops"] / theirs["flops"]
    holds = max(growth.values()) <= 0.05 and min(below.values()) >= 16 and flops <= 0.75
    figure = (
        f"saved {growth['saved']:+.1%}, peak {growth['peak']:+.1%} from {few} to {many} blocks; "
        f"{below['saved']:.0f}x and {below['peak']:.0f}x below checkpointing at {flops:.2f}x its FLOPs"
    )
    return {
        "holds": holds,
        "figure": figure,
        "growth": growth,
        "checkpointing_over_ours": below,
        "flops_over_checkpointing": flops,
        "costs": costs,
        "width": width,
        "batch": batch,
        "parts": PARTS,
    }


if __name__ == "__main__":
    sys.exit(claims.run("depth_is_free"))
