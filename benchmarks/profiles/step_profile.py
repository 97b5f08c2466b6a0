"""Time of a training step by kind of operation, for each trainer.

    python -m benchmarks.profiles.step_profile [--label NAME] [--batch 512] [--threads 2] [--compile BACKEND]

Writes ``results/step_profile_<label>.json``: for each arm the median time of its plain steps in seconds, and,
from other steps with `torch.profiler`, the seconds per step by kind of operation: products, optimizer, other
tensor operations, and the remainder, which is Python and the dispatcher. The profiler makes steps slower:
take shares from its figures, and times from the plain steps. To compare two versions, run the script in a
checkout of each, with different labels. ``--compile`` adds Mono-Forward compiled block by block.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import bpfree
from benchmarks._record import changes, record

WIDTH, BLOCKS, CLASSES = 1024, 16, 10
ARMS: dict[str, dict[str, Any]] = {
    "backprop": {},
    "mono_forward": {},
    "mono_forward analytic": {"gradients": "analytic"},
    "forward_forward": {"readout": "goodness", "classifier": False},
}
#: Operations by kind; all other operations are "other operations".
KINDS = {
    "products": ("aten::mm", "aten::addmm", "aten::bmm", "mkldnn::_linear_pointwise", "aten::convolution"),
    "optimizer": ("aten::_fused_adam_", "aten::_fused_adamw_", "aten::_fused_sgd_"),
    "copies": ("aten::copy_", "aten::fill_", "aten::zero_", "aten::cat", "aten::add_", "aten::add"),
    "activations": ("aten::threshold_backward", "aten::clamp_min", "aten::clamp_min_", "aten::relu"),
}


def kind_of(operation: str) -> str:
    """The kind of an operation."""
    return next((kind for kind, names in KINDS.items() if operation in names), "other operations")


def make(arm: str, width: int, blocks: int, backend: str | None = None) -> bpfree.Trainer:
    """A built trainer."""
    torch.manual_seed(0)
    kind = bpfree.get_trainer(arm.partition(" ")[0])
    net = bpfree.nn.mlp([width, *[width] * blocks, CLASSES])
    trainer = kind(net, progress=False, compile=backend, **ARMS.get(arm, {}))
    trainer.build((width,), CLASSES)
    return trainer


def by_kind(trainer: bpfree.Trainer, x: Tensor, y: Tensor, steps: int) -> dict[str, float]:
    """Seconds per profiled step by kind of operation."""
    start = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for number in range(steps):
            trainer.step(x, y, number)
        total = time.perf_counter() - start
    result: defaultdict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        if event.key.startswith(("aten::", "mkldnn::")):
            result[kind_of(event.key)] += event.self_cpu_time_total / 1e6
    result["Python and dispatch"] = max(0.0, total - sum(result.values()))
    return {kind: seconds / steps for kind, seconds in sorted(result.items(), key=lambda item: -item[1])}


def measure(
    arms: Sequence[str], batch: int, steps: int, width: int = WIDTH, blocks: int = BLOCKS, backend: str = ""
) -> dict[str, Any]:
    """Time and profile each arm; the arms alternate in plain steps.

    Args:
        arms: Names of `ARMS`; the suffix ``compiled`` means compiled blocks.
        batch: Samples of a step.
        steps: Plain steps of each arm, and a third as many profiled ones.
        width: Width of the input and of the hidden layers.
        blocks: Number of hidden layers.
        backend: Backend of `torch.compile`.
    """
    trainers = {
        arm: make(arm.removesuffix(" compiled"), width, blocks, backend if "compiled" in arm else None)
        for arm in arms
    }
    x, y = torch.rand(batch, width), torch.arange(batch) % CLASSES
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for number in range(-2, steps):
        for arm, trainer in trainers.items():
            start = time.perf_counter()
            trainer.step(x, y, number + 2)
            if number >= 0:
                seconds[arm].append(time.perf_counter() - start)
    result: dict[str, Any] = {}
    for arm, trainer in trainers.items():
        profiled = by_kind(trainer, x, y, max(1, steps // 3))
        result[arm] = {"step_s": statistics.median(seconds[arm]), "profiled_s": profiled}
    return result


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--label", default="now", help="suffix of the file name")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--blocks", type=int, default=BLOCKS)
    parser.add_argument("--compile", default="", metavar="BACKEND", help="for example inductor")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arms = [*ARMS, *(["mono_forward compiled"] if arguments.compile else [])]
    result = measure(
        arms, arguments.batch, arguments.steps, arguments.width, arguments.blocks, arguments.compile
    )
    changed = {key: value for key, value in changes(parser, arguments).items() if key != "label"}
    return record(f"step_profile_{arguments.label}", {**vars(arguments), "arms": result}, True, changed)


if __name__ == "__main__":
    sys.exit(main())
