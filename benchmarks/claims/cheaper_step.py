"""Time of a training step, Mono-Forward against backpropagation, with and without checkpointing.

    python -m benchmarks.claims.cheaper_step

A multilayer perceptron of 16 hidden layers, 1024 wide, on two threads. All arms take their steps through
`Trainer.step` with the same fused Adam, one after another in every round, in rotating order; the result is
the median over rounds of the ratio within a round. Mono-Forward uses closed-form gradients (``gradients:
analytic``); autograd is measured as well.

The malloc of glibc returns large blocks of memory to the system, and a step that allocates them again pays
for every page. The number of these page faults depends on the sizes and on the order of allocations, and
differs between the arms. So each batch size is measured twice: with the default malloc, which decides the
claim, and with a malloc that does not return memory, as a control.
"""

from __future__ import annotations

import ctypes
import resource
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
#: Parameters of glibc's malloc: thresholds for trimming the heap and for mapping a block, and the
#: largest value of the second.
TRIM_THRESHOLD, MMAP_THRESHOLD, LARGEST = -1, -3, 2**25
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
    """A distribution-free confidence interval for the median, between two order statistics."""
    n, ordered = len(values), sorted(values)
    below = max(0, int(stats.binom.ppf((1 - level) / 2, n, 0.5)) - 1)
    return ordered[below], ordered[n - 1 - below]


def race(
    steps: dict[str, Step], x: Tensor, y: Tensor, rounds: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of the steps of every arm, and page faults per step.

    Each arm takes one step in every round; the order rotates.
    """
    names, seconds = list(steps), {name: list[float]() for name in steps}
    pages = dict.fromkeys(steps, 0)
    for number in range(-2, rounds):  # two rounds to warm up
        for name in names:
            before, start = page_faults(), time.perf_counter()
            steps[name](x, y, number + 2)
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
                pages[name] += page_faults() - before
        names = names[1:] + names[:1]
    return seconds, {name: n / rounds for name, n in pages.items()}


def page_faults() -> int:
    """Page faults of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def keep_memory() -> bool:
    """Stop malloc from returning memory to the system; returns False if it is not that of glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(MMAP_THRESHOLD, LARGEST) and mallopt(TRIM_THRESHOLD, 2**31 - 1))


def compare(seconds: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Ratios within a round: their median, with an interval."""
    ratios: dict[str, dict[str, Any]] = {}
    for ours in ("analytic", "autograd"):
        for control in ("backprop", "checkpointing"):
            each = [a / b for a, b in zip(seconds[ours], seconds[control], strict=True)]
            ratios[f"{ours} / {control}"] = {"median": statistics.median(each), "interval": interval(each)}
    return ratios


def measure(
    width: int = 1024,
    blocks: int = 16,
    rounds: dict[int, int] | None = None,
    threads: int = 2,
) -> dict[str, Any]:
    """Time the arms against each other.

    Args:
        width: Width of the input and of the hidden layers.
        blocks: Number of hidden layers.
        rounds: Number of rounds, by batch size.
        threads: Threads of all arms.
    """
    rounds = rounds or {512: 60, 2048: 25}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    found: dict[str, dict[str, Any]] = {}
    for keep in (False, True):
        if keep and not keep_memory():
            break
        for batch, n in rounds.items():
            x, y = torch.rand(batch, width), torch.arange(batch) % CLASSES
            seconds, pages = race(make(width, blocks), x, y, n)
            name = f"{batch}, memory kept" if keep else str(batch)
            found[name] = {"ratios": compare(seconds), "seconds": seconds}
            for pair, ratio in found[name]["ratios"].items():
                low, high = ratio["interval"]
                print(f"batch {name}: {pair}: {ratio['median']:.3f} [{low:.3f}, {high:.3f}]", flush=True)
            if any(pages.values()):  # some systems do not count them
                found[name]["pages_a_step"] = pages
                print(f"batch {name}: pages a step: {pages}", flush=True)
    torch.set_num_threads(before)
    limits = {
        (batch, control): (found[str(batch)]["ratios"][f"analytic / {control}"]["median"], limit)
        for batch, by_control in LIMITS.items()
        if batch in rounds
        for control, limit in by_control.items()
    }
    figure = [f"{ratio:.3f} of {control} at {b}" for (b, control), (ratio, _) in limits.items()]
    for name in (name for name in found if "kept" in name):
        figure.append(f"{found[name]['ratios']['analytic / backprop']['median']:.3f} of backprop at {name}")
    return {
        "holds": bool(limits) and all(ratio <= limit for ratio, limit in limits.values()),
        "figure": "; ".join(figure),
        "threads": threads,
        "width": width,
        "blocks": blocks,
        "batches": found,
    }


if __name__ == "__main__":
    sys.exit(claims.run("cheaper_step"))
