"""FLOPs and saved bytes of a training step, local learning and backpropagation, counted and not timed.

    python -m benchmarks.profiles.step_cost

* FLOPs of a step, Mono-Forward / backpropagation, 16 equal blocks of width 1024: at most 0.72 (the limit for
  many blocks and small heads is 2/3, since no gradient crosses a block boundary).
* Bytes saved for backward with 4, 16 and 64 blocks: equal within 5 % for the local trainers. An exception is
  Forward-Forward with the classifier readout, which uses the outputs of all blocks; it is reported beside
  Forward-Forward with the goodness readout.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

import bpfree
from benchmarks._record import record
from bpfree.meters import count_flops, saved_for_backward

BATCH, CLASSES = 512, 10
TRAINERS: dict[str, dict[str, Any]] = {
    "backprop": {},
    "backprop_ds": {},
    "mf_joint": {},
    "mono_forward": {},
    "mono_forward analytic": {"gradients": "analytic"},
    "forward_forward": {"readout": "goodness", "classifier": False},
    "forward_forward with classifier": {},
    "random_features": {},
}
LOCAL = ("mono_forward", "mono_forward analytic", "forward_forward", "random_features")


def measure(name: str, width: int, blocks: int) -> tuple[int, int]:
    """FLOPs and peak saved bytes of one step."""
    torch.manual_seed(0)
    kind = bpfree.get_trainer(name.partition(" ")[0])
    net = bpfree.nn.mlp([width, *[width] * blocks, CLASSES])
    trainer = kind(net, progress=False, **TRAINERS[name])
    trainer.build((width,), CLASSES)
    x, y = torch.rand(BATCH, width), torch.arange(BATCH) % CLASSES
    flops = count_flops(trainer.step, x, y)
    with saved_for_backward() as saved:
        trainer.step(x, y, 1)
    return flops, saved.peak_bytes


def main() -> int:
    """Count; 0 if both claims hold."""
    flops = {name: {n: measure(name, 1024, n)[0] for n in (4, 16)} for name in TRAINERS}
    saved = {name: {n: measure(name, 512, n)[1] for n in (4, 16, 64)} for name in TRAINERS}
    ratios = {
        name: {n: f / flops["backprop"][n] for n, f in by_depth.items()} for name, by_depth in flops.items()
    }
    growth = {
        name: max(by_depth.values()) / max(1, min(by_depth.values())) for name, by_depth in saved.items()
    }
    figures = {"flops_over_backprop": ratios, "saved_bytes": saved, "saved_growth_4_to_64": growth}
    passed = ratios["mono_forward"][16] <= 0.72 and all(growth[name] <= 1.05 for name in LOCAL)
    return record("step_cost", figures, passed)


if __name__ == "__main__":
    sys.exit(main())
