"""Time of a training step, Mono-Forward against backpropagation, with and without checkpointing.

    python -m benchmarks.claims.cheaper_step

A multilayer perceptron of 16 hidden layers, 1024 wide, on two threads. All arms take their steps through
`Trainer.step` with the same fused Adam, one after another in every round, in turned order; what counts is the
median over rounds of the ratio within a round. Mono-Forward takes its step in closed form (``gradients:
analytic``); its other setting, and backpropagation without an optimizer's step, stand beside it.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from scipy import stats
from torch import Tensor, nn

import bpfree
from benchmarks import claims
from benchmarks._checkpointing import square_root

TITLE = "A training step is cheaper: no gradient passes from block to block"
LIMITS = {512: {"backprop": 0.75, "checkpointing": 0.60}, 2048: {"backprop": 0.68, "checkpointing": 0.57}}
HOLDS_IF = (
    "16 x 1024 MLP, the same fused Adam, two threads: time of a step / backpropagation's at most 0.75 at "
    "batch 512 and 0.68 at batch 2048; / backpropagation's with square-root checkpointing at most 0.60 and "
    "0.57"
)
CLASSES = 10
Step = Callable[[Tensor, Tensor, int], object]


def make(width: int, blocks: int) -> dict[str, Step]:
    """A step of each arm, all with the same initial weights."""
    found: dict[str, Step] = {}
    for arm in ("analytic", "autograd", "backprop", "checkpointing"):
        torch.manual_seed(0)
        net = bpfree.nn.mlp([width, *[width] * blocks, CLASSES])
        trainer: bpfree.Trainer
        if arm in ("analytic", "autograd"):
            trainer = bpfree.MonoForward(net, gradients=arm, progress=False)
        elif arm == "backprop":
            trainer = bpfree.Backprop(net, progress=False)
        else:
            stages = [nn.Sequential(net[i], net[i + 1]) for i in range(1, 2 * blocks, 2)]
            trainer = bpfree.Backprop(nn.Sequential(*square_root(stages), net[-1]), progress=False)
        trainer.build((width,), CLASSES)
        found[arm] = trainer.step
    return found


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """An interval for the median that supposes nothing of the distribution: between two order statistics."""
    n, ordered = len(values), sorted(values)
    below = max(0, int(stats.binom.ppf((1 - level) / 2, n, 0.5)) - 1)
    return ordered[below], ordered[n - 1 - below]


def race(steps: dict[str, Step], x: Tensor, y: Tensor, rounds: int) -> dict[str, list[float]]:
    """Seconds of every arm's steps; all go once in every round, each time another one first."""
    names, seconds = list(steps), {name: list[float]() for name in steps}
    for number in range(-2, rounds):  # two rounds to warm up
        for name in names:
            start = time.perf_counter()
            steps[name](x, y, number + 2)
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
        names = names[1:] + names[:1]
    return seconds


def measure(
    width: int = 1024,
    blocks: int = 16,
    rounds: dict[int, int] | None = None,
    threads: int = 2,
) -> dict[str, Any]:
    """Time the arms against each other.

    Args:
        width: Of input and hidden layers.
        blocks: Hidden layers.
        rounds: How many, by batch.
        threads: For all arms.
    """
    rounds = rounds or {512: 60, 2048: 25}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    found: dict[str, Any] = {}
    for batch, n in rounds.items():
        x, y = torch.rand(batch, width), torch.arange(batch) % CLASSES
        seconds = race(make(width, blocks), x, y, n)
        ratios: dict[str, Any] = {}
        for ours in ("analytic", "autograd"):
            for control in ("backprop", "checkpointing"):
                each = [a / b for a, b in zip(seconds[ours], seconds[control], strict=True)]
                ratios[f"{ours} / {control}"] = {
                    "median": statistics.median(each),
                    "interval": interval(each),
                }
        found[str(batch)] = {"ratios": ratios, "seconds": seconds}
        for name, ratio in ratios.items():
            low, high = ratio["interval"]
            print(f"batch {batch}, {name}: {ratio['median']:.3f} [{low:.3f}, {high:.3f}]", flush=True)
    torch.set_num_threads(before)
    limits = {
        (batch, control): (found[str(batch)]["ratios"][f"analytic / {control}"]["median"], limit)
        for batch, by_control in LIMITS.items()
        if batch in rounds
        for control, limit in by_control.items()
    }
    return {
        "holds": bool(limits) and all(ratio <= limit for ratio, limit in limits.values()),
        "figure": "; ".join(
            f"{ratio:.3f} of {control} at {b}" for (b, control), (ratio, _) in limits.items()
        ),
        "threads": threads,
        "width": width,
        "blocks": blocks,
        "batches": found,
    }


if __name__ == "__main__":
    sys.exit(claims.run("cheaper_step"))
