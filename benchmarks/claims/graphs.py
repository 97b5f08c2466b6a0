"""Training a GCN layer by layer on a graph of 100 000 nodes, and by backpropagation.

python -m benchmarks.claims.graphs
"""

from __future__ import annotations

import sys
from typing import Any

from benchmarks import claims
from benchmarks.profiles import graph_scale

TITLE = (
    "On a large graph with few labels, ForwardGNN trains in a fraction of backpropagation's time and memory"
)
HOLDS_IF = (
    "100 000 nodes, 2 000 000 edges, 10 % labelled, 3 layers, 100 epochs, one thread: at least 15x less "
    "training time and 10x fewer bytes saved for backward than a lean BP-GCN: one that makes the operator "
    "and its transpose once, and one that also keeps its first aggregate and makes its last layer for "
    "labelled nodes alone"
)


def measure(nodes: int = 100_000, epochs: int = graph_scale.EPOCHS) -> dict[str, Any]:
    """Train all arms once, in one process; see `benchmarks.profiles.graph_scale`."""
    result = graph_scale.claim(nodes, epochs)
    for kind in graph_scale.ARMS:
        print(f"{kind}: {result[kind]}", flush=True)
    figure = (
        f"{result['time_ratio']:.1f}x less time, {result['saved_ratio']:.1f}x fewer bytes; than the leanest "
        f"{result['lean_time_ratio']:.1f}x and {result['lean_saved_ratio']:.1f}x"
    )
    return {"holds": graph_scale.holds(result), "figure": figure, "threads": 1, "epochs": epochs, **result}


if __name__ == "__main__":
    sys.exit(claims.run("graphs"))
