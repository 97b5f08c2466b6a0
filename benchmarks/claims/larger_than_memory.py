"""A feature cache on disk, four times as large as the memory limit of the process.

    python -m benchmarks.claims.larger_than_memory

Greedy Mono-Forward trains a network whose cached features are many times as large as its input, in three
processes: in memory without a limit; with ``cache_dir`` under a limit; in memory under the same limit, which
must fail. The limit is RLIMIT_DATA of the operating system: all private writable memory of the process,
including that of the interpreter and the libraries, but not shared file mappings. The cache is in the folder
for temporary files (TMPDIR), which must be on a disk with enough space.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import bpfree
from benchmarks import claims

TITLE = "Larger than memory: features of a greedy cascade may live on disk"
HOLDS_IF = (
    "a feature cache of 4x the memory that the process is allowed trains to the same weights, bit for bit, "
    "as in memory, and in memory it cannot under that limit"
)
INPUTS, CLASSES, MIB = 4, 10, 2**20


def possible() -> str | None:
    """The reason why this machine cannot limit the memory of a process without mapped files, or None."""
    return None if sys.platform == "linux" else "RLIMIT_DATA means this on Linux alone"


def train(n: int, width: int, batch: int, limit: int | None, cache_dir: str | None) -> dict[str, Any]:
    """Train in this process; returns a hash of the weights, seconds and the memory that was used."""
    import resource

    if limit is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    data = (torch.rand(n, INPUTS, generator=generator), torch.randint(CLASSES, (n,), generator=generator))
    torch.manual_seed(0)
    net = bpfree.nn.mlp([INPUTS, width, width, CLASSES])
    trainer = bpfree.MonoForward(net, schedule="greedy", progress=False)
    start = time.perf_counter()
    try:
        trainer.fit(data, epochs=1, batch_size=batch, cache_dir=cache_dir)
    except (MemoryError, RuntimeError) as error:
        if "can't allocate memory" not in str(error) and not isinstance(error, MemoryError):
            raise
        return {"failed": str(error).splitlines()[0][-120:]}
    weights = [hash_of(p) for p in net.parameters()]
    return {"weights": weights, "seconds": time.perf_counter() - start, "data_bytes": peak_data()}


def hash_of(tensor: torch.Tensor) -> str:
    """A hash of the bits of a tensor."""
    import hashlib

    return hashlib.sha256(tensor.detach().numpy().tobytes()).hexdigest()[:16]


def peak_data() -> int:
    """Private writable memory of this process, which RLIMIT_DATA limits."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))


def child(n: int, width: int, batch: int, limit: int | None, cache_dir: str | None) -> dict[str, Any]:
    """`train` in its own process."""
    asked = json.dumps([n, width, batch, limit, cache_dir])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.claims.larger_than_memory", "--train", asked],
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(
    limit_mib: int = 1280, times: float = 4.0, width: int = 256, batch: int = 4096, folder: str | None = None
) -> dict[str, Any]:
    """Train three times.

    Args:
        limit_mib: Memory limit of a process in MiB, including libraries.
        times: Size of the cache divided by the limit.
        width: Width of the hidden layers.
        batch: Samples of a step.
        folder: Folder for the cache.
    """
    limit = limit_mib * MIB
    n = int(times * limit) // (4 * width) + 1
    runs: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=folder) as cache_dir:
        for name, allowed, where in (
            ("in memory, unlimited", None, None),
            ("on disk, limited", limit, cache_dir),
            ("in memory, limited", limit, None),
        ):
            runs[name] = child(n, width, batch, allowed, where)
            print(f"{name}: {runs[name]}", flush=True)
    memory, disk, refused = runs.values()
    same = memory.get("weights", 0) == disk.get("weights", 1)
    refusal = "fails" if "failed" in refused else "fits"
    return {
        "holds": same and "failed" in refused and times >= 4,
        "figure": f"{4 * width * n / MIB:.0f} MiB of features under a limit of {limit_mib} MiB: "
        f"{'the same bits' if same else 'other weights'}; in memory it {refusal}",
        "runs": runs,
        "samples": n,
        "width": width,
        "batch": batch,
        "limit_bytes": limit,
        "threads": 1,
        "seed": 0,
    }


def main() -> int:
    """Measure the claim, or train once for it."""
    parser = argparse.ArgumentParser(description=TITLE)
    parser.add_argument("--train", help=argparse.SUPPRESS)
    asked = parser.parse_args().train
    if asked is None:
        return claims.run("larger_than_memory")
    print(json.dumps(train(*json.loads(asked))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
