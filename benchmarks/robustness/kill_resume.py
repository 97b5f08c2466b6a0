"""A bench that is killed and restarted at random moments gives the results of one that was never stopped.

    python -m benchmarks.robustness.kill_resume [--kills 10] [--seed 0]

Compares every row (but for times, memory of the process and the count of segments) and every byte of the
weights with those of an undisturbed run of the same config.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks._record import changes, record
from bpfree.bench.results import Results, Row, comparable

CONFIG = """
name: kill_resume
dataset: {name: digits, augment: [shift]}
net: {name: mlp, hidden: [256, 256], dropout: 0.1}
fit: {epochs: 250, batch_size: 32}
trainer: {id: mono_forward, lr_schedule: cosine}
controls:
  - label: greedy
    trainer: {id: mono_forward, schedule: greedy}
    fit: {epochs: 120}
  - trainer: {id: forward_forward, optimizer: adam}
    fit: {epochs: 60, eval_every: 5}
  - trainer: {id: backprop_ds}
seeds: [0, 1]
"""


def bench(config: Path, out: Path) -> subprocess.Popen[bytes]:
    """Start the bench in its own process group."""
    command = [
        sys.executable,
        "-m",
        "bpfree.bench",
        "run",
        str(config),
        "--out",
        str(out),
        "--checkpoint-every",
        "0.2",
    ]
    with open(out.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def rows(out: Path) -> list[Row]:
    """The parts of the rows that must be equal in two runs, sorted by cell."""
    return sorted((comparable(row) for row in Results(out).read()), key=lambda row: row["cell_id"])


def weights(out: Path) -> dict[str, bytes]:
    """The bytes of every model file."""
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.glob("cells/*/model.safetensors"))}


def main() -> int:
    """Run, kill, compare; 0 if nothing differs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        config, calm, killed = Path(folder, "config.yaml"), Path(folder, "calm"), Path(folder, "killed")
        config.write_text(CONFIG)
        start = time.monotonic()
        if bench(config, calm).wait() != 0:
            raise SystemExit(calm.with_suffix(".log").read_text())
        undisturbed_s = time.monotonic() - start
        moments: list[float] = []
        while len(moments) < arguments.kills:
            process = bench(config, killed)
            moment = draw.uniform(0.5, undisturbed_s / 5)
            try:
                process.wait(moment)
                break  # the run ended earlier: fewer kills, which the result shows
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                moments.append(round(moment, 2))
        final = bench(config, killed).wait()
        segments = [row["segments"] for row in Results(killed).read()]
        figures = {
            "kills": len(moments),
            "killed_after_s": moments,
            "cells": len(rows(calm)),
            "segments_per_cell": segments,
            "rows_equal": rows(calm) == rows(killed),
            "weights_equal": weights(calm) == weights(killed),
        }
    equal = final == 0 and figures["rows_equal"] and figures["weights_equal"]
    # Kills between two cells would show nothing.
    resumed = sum(n - 1 for n in segments)
    passed = bool(equal and len(moments) >= 10 and resumed >= 5)
    return record("kill_resume", figures, passed, changes(parser, arguments))


if __name__ == "__main__":
    sys.exit(main())
