"""Two workers train the layers of one net in parallel, with the same weights as one worker.

    python -m benchmarks.claims.layers_in_parallel

Two processes, each with one core and one thread, run the pipelined schedule; the baseline is one process with
one thread. Controls are one process with two threads, and backpropagation with one process and with two
processes of `torch.distributed.pipelining` (GPipe and 1F1B). Arms alternate, each in its own processes; the
result of an arm is the median over all epochs but the first of each run.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import claims
from benchmarks.claims._workers import Spec, start

TITLE = "Layers in parallel: two workers train one net almost twice as fast as one, to the same weights"
HOLDS_IF = "samples per second of two workers, a core and a thread each, >= 1.7x those of one; equal weights"
LIMIT = 1.7


def possible() -> str | None:
    """The reason why this machine cannot measure the claim: it has one core; or None."""
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    return None if n >= 2 else f"needs two cores that processes can be pinned to, there are {n}"


def measure(
    dataset: str = "mnist",
    samples: int = 60_000,
    hidden: tuple[int, ...] = (1024,) * 6,
    batch: int = 256,
    epochs: int = 2,
    rounds: int = 3,
) -> dict[str, Any]:
    """Run every arm ``rounds`` times, alternating.

    Args:
        dataset: Name of the data set.
        samples: Number of training samples.
        hidden: Widths of the hidden layers.
        batch: Samples per step.
        epochs: Epochs of each run, at least 2; the first is not timed.
        rounds: Number of runs of each arm.
    """
    cores = sorted(os.sched_getaffinity(0))[:2]
    one = Spec(
        arm="simultaneous", dataset=dataset, samples=samples, hidden=list(hidden), batch=batch, epochs=epochs,
        cores=cores[:1],
    )  # fmt: skip
    arms = {
        "one worker, one thread": one,
        "two workers, one thread each": replace(one, arm="pipelined", cores=cores),
        "one worker, two threads": replace(one, threads=2, cores=cores),
        "backpropagation, one thread": replace(one, arm="backprop"),
        "backpropagation, two threads": replace(one, arm="backprop", threads=2, cores=cores),
        "backpropagation, GPipe of two workers": replace(one, arm="gpipe", cores=cores),
        "backpropagation, 1F1B of two workers": replace(one, arm="1f1b", cores=cores),
    }
    found: dict[str, dict[str, Any]] = {name: {"epoch_s": [], "accuracy": []} for name in arms}
    for number in range(rounds):
        # The order is reversed in every other round, so that a drift of the machine affects all arms equally.
        for name in list(arms) if number % 2 == 0 else reversed(arms):
            with tempfile.TemporaryDirectory() as folder:
                figures = start(arms[name], Path(folder))
            found[name]["epoch_s"] += figures["epoch_s"][1:]
            found[name]["accuracy"].append(figures["accuracy"])
            found[name].setdefault("weights", figures.get("weights"))
            print(f"  {name}: {figures['epoch_s']} s, accuracy {figures['accuracy']:.4f}", flush=True)
    for name, arm in found.items():
        arm["samples_per_s"] = samples / statistics.median(arm["epoch_s"])
        print(f"  {name}: {arm['samples_per_s']:.0f} samples/s")
    alone, together = found["one worker, one thread"], found["two workers, one thread each"]
    ratio = together["samples_per_s"] / alone["samples_per_s"]
    bp = found["backpropagation, one thread"]
    gpipe, f1b1 = (
        found[f"backpropagation, {kind} of two workers"]["samples_per_s"] / bp["samples_per_s"]
        for kind in ("GPipe", "1F1B")
    )
    threads = found["one worker, two threads"]["samples_per_s"] / alone["samples_per_s"]
    same = together["weights"] == alone["weights"]
    return {
        "holds": ratio >= LIMIT and same,
        "figure": (
            f"{ratio:.2f}x, weights {'equal' if same else 'differ'}, accuracy {together['accuracy'][0]:.4f}; "
            f"one worker with two threads {threads:.2f}x; backpropagation by two workers over one: GPipe "
            f"{gpipe:.2f}x, 1F1B {f1b1:.2f}x, accuracy {bp['accuracy'][0]:.4f}"
        ),
        "ratio": ratio,
        "weights_equal": same,
        "arms": found,
        "sizes": {
            "dataset": dataset, "samples": samples, "hidden": list(hidden), "batch": batch, "epochs": epochs,
            "rounds": rounds,
        },
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(claims.run("layers_in_parallel"))
