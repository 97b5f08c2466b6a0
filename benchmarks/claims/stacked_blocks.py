"""Steps per second of a net so narrow that its time is that of launching operations.

    python -m benchmarks.claims.stacked_blocks

In backpropagation the gradient of a layer depends on that of the layer above, so a deep net is a chain of
small operations. Local blocks are independent: equal blocks take their steps in batched products
(``gradients: stacked``). Measured on a GPU if there is one, otherwise on one thread of a CPU, where each
operation has a fixed cost as well. All arms take series of steps through `Trainer.step`, one arm after
another in every round, in rotating order; the result is the median over rounds of the ratio within a round.
No arm uses CUDA graphs, which replay a step without launching its operations.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

import torch
from torch import Tensor

import bpfree
from benchmarks import claims
from benchmarks.claims.cheaper_step import CLASSES, Step, interval, race

TITLE = "Stacked: where launching operations bounds a step, equal local blocks take it together"
HOLDS_IF = (
    "16 hidden layers of 32 units, batch 32, the same fused Adam: at least 2x backpropagation's steps per "
    "second; on a GPU, or on one thread"
)
LIMIT = 2.0
ARMS = ("stacked", "analytic", "autograd", "backprop")


def bursts(width: int, blocks: int, burst: int, device: torch.device) -> dict[str, Step]:
    """A function for each arm that takes some steps in a row; all arms have the same initial weights."""
    found: dict[str, Step] = {}
    for arm in ARMS:
        torch.manual_seed(0)
        net = bpfree.nn.mlp([width, *[width] * blocks, CLASSES]).to(device)
        trainer = (
            bpfree.Backprop(net, progress=False)
            if arm == "backprop"
            else bpfree.MonoForward(net, gradients=arm, progress=False)
        )
        trainer.build((width,), CLASSES)

        def run(x: Tensor, y: Tensor, number: int, trainer: bpfree.Trainer = trainer) -> None:
            for k in range(burst):
                trainer.step(x, y, number * burst + k)
            if device.type == "cuda":
                torch.cuda.synchronize()

        found[arm] = run
    return found


def measure(
    width: int = 32, blocks: int = 16, batch: int = 32, rounds: int = 61, burst: int = 20
) -> dict[str, Any]:
    """Time the arms; returns the number of steps of each arm per step of backpropagation."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        x = torch.randn(batch, width, generator=torch.Generator().manual_seed(1)).to(device)
        y = torch.arange(batch, device=device) % CLASSES
        seconds, _ = race(bursts(width, blocks, burst, device), x, y, rounds)
    finally:
        torch.set_num_threads(threads)
    ratios: dict[str, dict[str, Any]] = {}
    for arm in ARMS[:-1]:
        found = [b / a for a, b in zip(seconds[arm], seconds["backprop"], strict=True)]
        ratios[arm] = {"ratio": statistics.median(found), "interval": interval(found)}
        low, high = ratios[arm]["interval"]
        print(
            f"{arm}: {ratios[arm]['ratio']:.2f}x backpropagation's steps per second [{low:.2f}, {high:.2f}]"
        )
    return {
        "holds": ratios["stacked"]["ratio"] >= LIMIT,
        "figure": ", ".join(f"{arm} {r['ratio']:.2f}x backpropagation's steps" for arm, r in ratios.items()),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu, one thread",
        "ms_per_step": {arm: 1e3 * statistics.median(s) / burst for arm, s in seconds.items()},
        "ratios": ratios,
    }


if __name__ == "__main__":
    sys.exit(claims.run("stacked_blocks"))
