"""The energy meter on a real GPU: agreement of its counter with its power sensor, and between windows.

    python -m benchmarks.profiles.gpu_energy                         # about 20 minutes; needs an idle GPU
    python -m benchmarks.profiles.gpu_energy --window 15 --idle 10   # a quick look; not for a claim

Three loads (matrix products, copies, and training steps of an MLP by backpropagation and by Mono-Forward) are
metered twice each, in order and in reverse order, with idling before and after each. The claims are:

* no window is tainted: counter and integral of sampled power differ by at most 5 % under load;
* two windows of the same load differ by at most 3 % in watts;
* the net energy of an idle window, with a CUDA context, is at most 3 % of its gross energy;
* no load draws more than 1.1 times the power limit.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

import bpfree
from benchmarks._record import changes, record
from bpfree.bench.doctor import examine
from bpfree.meters import Reading, energy, synchronize

CLASSES, BATCH, WIDTH = 10, 128, 1000
Work = Callable[[], object]


def products() -> Work:
    """Bound by arithmetic."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.float16)
    return lambda: a @ a


def copies() -> Work:
    """Bound by memory."""
    a = torch.empty(2**29, device="cuda", dtype=torch.uint8)
    b = torch.empty_like(a)
    return lambda: b.copy_(a)


def steps(name: str) -> Work:
    """Bound by launching kernels: training steps on one batch on the device."""
    torch.manual_seed(0)
    net = bpfree.nn.mlp([784, WIDTH, WIDTH, CLASSES])
    trainer = bpfree.get_trainer(name)(net, device="cuda", progress=False)
    trainer.build((784,), CLASSES)
    x, y = torch.rand(BATCH, 784, device="cuda"), torch.arange(BATCH, device="cuda") % CLASSES
    return lambda: trainer.step(x, y, 0)


LOADS: dict[str, Callable[[], Work]] = {
    "products": products,
    "copies": copies,
    "backprop steps": lambda: steps("backprop"),
    "mono_forward steps": lambda: steps("mono_forward"),
    "waiting": lambda: lambda: time.sleep(0.05),
}


def measured(work: Work, window_s: float, idle_s: float) -> tuple[Reading, int, dict[str, Any]]:
    """The reading of a window of this load, the number of calls in it, and facts about the device."""
    for _ in range(50):
        work()
    synchronize("cuda")
    calls = 0
    with energy("cuda", idle_s=idle_s, min_s=min(10.0, window_s)) as meter:
        end = time.perf_counter() + window_s
        while time.perf_counter() < end:
            for _ in range(20):
                work()
            calls += 20
            synchronize("cuda")
    return meter.reading("gpu", "work"), calls, meter.facts()["gpu"]


def row(name: str, window_s: float, idle_s: float) -> dict[str, Any]:
    """One metered window as plain data."""
    reading, calls, facts = measured(LOADS[name](), window_s, idle_s)
    result = {"load": name, "calls": calls, "reading": reading.row(), "device": facts}
    if reading.gross_j is not None:
        result |= {"watts": reading.gross_j / reading.window_s, "joules_per_call": reading.gross_j / calls}
    print(
        f"{name}: {result.get('watts', float('nan')):.1f} W, ratio {reading.ratio}, {reading.tainted}",
        flush=True,
    )
    return result


def claims(rows: list[dict[str, Any]]) -> dict[str, bool]:
    """Which of the claims hold."""
    loaded = [r for r in rows if r["load"] != "waiting"]
    waits = [r["reading"] for r in rows if r["load"] == "waiting"]
    watts = {name: [r["watts"] for r in rows if r["load"] == name and "watts" in r] for name in LOADS}
    limit = rows[0]["device"].get("power_limit_w")
    return {
        "every window gives a figure": all("gross_j" in r["reading"] for r in rows),
        "no loaded window is tainted": not any(r["reading"].get("tainted") for r in loaded),
        "two windows agree within 3 %": all(
            len(pair) == 2 and abs(pair[0] / pair[1] - 1) <= 0.03 for pair in watts.values()
        ),
        "waiting costs nothing net": all(
            abs(w.get("net_j", 1e9)) <= 0.03 * w.get("gross_j", 0) for w in waits
        ),
        "no load is above the power limit": limit is None
        or all(w <= 1.1 * limit for pair in watts.values() for w in pair),
    }


def main() -> int:
    """Meter; 0 if all claims hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--window", type=float, default=60.0, metavar="S", help="seconds of each window")
    parser.add_argument(
        "--idle", type=float, default=30.0, metavar="S", help="seconds of idling before and after it"
    )
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.stderr.write("error: torch sees no CUDA device here; this script meters one\n")
        return 2
    order = [*LOADS, *reversed(LOADS)]
    rows = [row(name, arguments.window, arguments.idle) for name in order]
    results = claims(rows)
    figures = {"claims": results, "window_s": arguments.window, "doctor": examine("cuda"), "rows": rows}
    return record("gpu_energy", figures, all(results.values()), changes(parser, arguments))


if __name__ == "__main__":
    sys.exit(main())
