"""Where the time of a training step goes, by operation, for each trainer.

    python -m benchmarks.profiles.step_profile [--label NAME] [--batch 512] [--threads 2] [--compile BACKEND]

Writes ``results/step_profile_<label>.json``: of each arm the median of its plain steps in seconds, and, from
other steps under `torch.profiler`, the seconds that a step spends in each kind of work: products, the
optimizer, other tensor operations, and what is left, which is Python and the dispatcher. The profiler makes
a step slower: its figures tell shares, the plain steps tell time. To compare two versions, check out the one
and the other and give each its label. ``--compile`` adds Mono-Forward compiled block by block.
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
#: Operations by kind; whatever else works on tensors is "other".
KINDS = {
    "products": ("aten::mm", "aten::addmm", "aten::bmm", "mkldnn::_linear_pointwise", "aten::convolution"),
    "optimizer": ("aten::_fused_adam_", "aten::_fused_adamw_", "aten::_fused_sgd_"),
    "copies": ("aten::copy_", "aten::fill_", "aten::zero_", "aten::cat", "aten::add_", "aten::add"),
    "activations": ("aten::threshold_backward", "aten::clamp_min", "aten::clamp_min_", "aten::relu"),
}


def kind_of(operation: str) -> str:
    """The kind of work that an operation is."""
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
    """Seconds of a profiled step in each kind of work."""
    start = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for number in range(steps):
            trainer.step(x, y, number)
        whole = time.perf_counter() - start
    found: defaultdict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        if event.key.startswith(("aten::", "mkldnn::")):
            found[kind_of(event.key)] += event.self_cpu_time_total / 1e6
    found["Python and dispatch"] = max(0.0, whole - sum(found.values()))
    return {kind: seconds / steps for kind, seconds in sorted(found.items(), key=lambda item: -item[1])}


def measure(
    arms: Sequence[str], batch: int, steps: int, width: int = WIDTH, blocks: int = BLOCKS, backend: str = ""
) -> dict[str, Any]:
    """Time and profile each arm; they take their plain steps in turns.

    Args:
        arms: Names of `ARMS`; with ``compiled`` behind it, an arm whose blocks are compiled.
        batch: Samples of a step.
        steps: Plain steps of each, and a third as many profiled ones.
        width: Of input and hidden layers.
        blocks: Hidden layers.
        backend: Of `torch.compile`.
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
    found: dict[str, Any] = {}
    for arm, trainer in trainers.items():
        profiled = by_kind(trainer, x, y, max(1, steps // 3))
        found[arm] = {"step_s": statistics.median(seconds[arm]), "profiled_s": profiled}
    return found


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--label", default="now", help="what the file is called")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--blocks", type=int, default=BLOCKS)
    parser.add_argument("--compile", default="", metavar="BACKEND", help="for example inductor")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    arms = [*ARMS, *(["mono_forward compiled"] if asked.compile else [])]
    found = measure(arms, asked.batch, asked.steps, asked.width, asked.blocks, asked.compile)
    changed = {key: value for key, value in changes(parser, asked).items() if key != "label"}
    return record(f"step_profile_{asked.label}", {**vars(asked), "arms": found}, True, changed)


if __name__ == "__main__":
    sys.exit(main())
