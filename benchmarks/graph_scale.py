"""ForwardGNN and backpropagation on a graph of 100 000 nodes: time, saved bytes, and where the gain ends.

    python -m benchmarks.graph_scale

The graph is random, undirected, with 2 000 000 directed edges; ten classes, 128 features that have to do with
them, 10 % of the nodes labelled; a GCN of three layers, 128 wide, 100 epochs, all labelled nodes a step. Both
run in one process on one thread, without validation. What is timed is training, aggregation included.

* Time: backpropagation takes at least 15 times as long.
* Bytes saved for backward: at least 10 times as many.

The curves change one thing at a time. Their points are timed over a few epochs and reckoned up to 100: what
is done once, and 100 times what an epoch takes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

import bpfree
from benchmarks._record import record
from bpfree.data import GraphData
from bpfree.graph import Graph
from bpfree.meters import saved_for_backward

FEATURES, HIDDEN, CLASSES, EPOCHS = 128, 128, 10, 100
SHORT = 3


def graph(nodes: int, edges: int, labelled: float) -> tuple[GraphData, GraphData]:
    """A random graph, and its labelled and its other nodes."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(CLASSES, (nodes,), generator=generator)
    x = torch.randn(nodes, FEATURES, generator=generator)
    x += 0.5 * torch.randn(CLASSES, FEATURES, generator=generator)[y]
    half = torch.randint(nodes, (2, edges // 2), generator=generator)
    # Half of the edges join nodes of one class.
    order = torch.argsort(y, stable=True)
    place = torch.empty(nodes, dtype=torch.long)
    place[order] = torch.arange(nodes)
    near = order[(place[half[0]] + torch.randint(1, nodes // 20, (edges // 2,), generator=generator)) % nodes]
    alike = torch.rand(edges // 2, generator=generator) < 0.5
    half[1] = torch.where(alike, near, half[1])
    shared = Graph(torch.cat([half, half.flip(0)], 1), nodes)
    ids = torch.randperm(nodes, generator=generator)
    cut = round(labelled * nodes)
    rest = ids[cut:] if cut < nodes else ids[:1]
    return (
        GraphData(x, shared, ids[:cut], y[ids[:cut]], CLASSES, "random graph"),
        GraphData(x, shared, rest, y[rest], CLASSES, "random graph"),
    )


class Clock:
    """Seconds by window."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def window(self, name: str) -> Iterator[None]:
        """Time what runs inside."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    @property
    def total(self) -> float:
        """Training, and what was made once for it."""
        return sum(self.seconds.values())


def trainer(kind: str, depth: int) -> bpfree.Trainer:
    """A new trainer with a GCN of ``depth`` layers."""
    net = bpfree.nn.GNN("gcn", [HIDDEN] * depth)
    options: dict[str, Any] = {"progress": False, "lr": 1e-2, "weight_decay": 0.0}
    if kind == "forward_gnn":
        return bpfree.ForwardGNN(net, **options)
    return bpfree.BackpropGNN(net, normalize=True, **options)


def run(kind: str, data: GraphData, depth: int, epochs: int) -> tuple[bpfree.Trainer, float]:
    """Train; returns the trainer and the seconds."""
    clock, made = Clock(), trainer(kind, depth)
    made.build_for(data)  # type: ignore[arg-type]
    hooks = bpfree.Hooks(clock.window)
    made.fit(data, epochs=epochs, batch_size=len(data), hooks=hooks)
    return made, clock.total


def saved(kind: str, data: GraphData, depth: int) -> int:
    """Peak of the bytes saved for backward, over one epoch of every stage."""
    made = trainer(kind, depth)
    made.build_for(data)  # type: ignore[arg-type]
    with saved_for_backward() as bytes_:
        made.fit(data, epochs=1, batch_size=len(data), hooks=bpfree.Hooks())
    return bytes_.peak_bytes


def compare(data: GraphData, depth: int) -> dict[str, float]:
    """Seconds of 100 epochs by both, reckoned from few, and bytes."""
    found: dict[str, float] = {}
    for kind in ("forward_gnn", "backprop_gnn"):
        one, more = run(kind, data, depth, 1)[1], run(kind, data, depth, 1 + SHORT)[1]
        epoch = (more - one) / SHORT
        found[f"{kind}_s"] = max(one, epoch) + (EPOCHS - 1) * epoch
        found[f"{kind}_saved"] = saved(kind, data, depth)
    found["time_ratio"] = found["backprop_gnn_s"] / found["forward_gnn_s"]
    found["saved_ratio"] = found["backprop_gnn_saved"] / found["forward_gnn_saved"]
    return found


def claim(nodes: int, epochs: int = EPOCHS) -> dict[str, Any]:
    """Seconds, saved bytes and accuracy of both on one graph, 20 edges a node, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    data, rest = graph(nodes, 20 * nodes, 0.1)
    found: dict[str, Any] = {"nodes": nodes, "edges": data.graph.n_edges, "labelled": len(data), "depth": 3}
    for kind in ("forward_gnn", "backprop_gnn"):
        made, seconds = run(kind, data, 3, epochs)
        accuracy = made.evaluate(rest)["accuracy"]
        found[kind] = {"seconds": seconds, "saved_bytes": saved(kind, data, 3), "accuracy": accuracy}
    ours, theirs = found["forward_gnn"], found["backprop_gnn"]
    found["time_ratio"] = theirs["seconds"] / ours["seconds"]
    found["saved_ratio"] = theirs["saved_bytes"] / ours["saved_bytes"]
    torch.set_num_threads(before)
    return found


def holds(found: dict[str, Any]) -> bool:
    """Whether what `claim` found is enough."""
    return bool(found["time_ratio"] >= 15 and found["saved_ratio"] >= 10)


def main() -> int:
    """Measure; 0 if both claims hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--nodes", type=int, default=100_000)
    nodes = parser.parse_args().nodes
    found, edges = claim(nodes), 20 * nodes
    torch.set_num_threads(1)
    data, _ = graph(nodes, edges, 0.1)
    curves = {
        "labelled": {str(s): compare(graph(nodes, edges, s)[0], 3) for s in (0.02, 0.1, 0.3, 0.64, 1.0)},
        "depth": {str(d): compare(data, d) for d in (1, 2, 4, 8)},
        "edges": {str(e): compare(graph(nodes, e, 0.1)[0], 3) for e in (edges // 10, edges // 2, 2 * edges)},
    }
    return record("graph_scale", {"claim": found, "curves": curves}, holds(found))


if __name__ == "__main__":
    sys.exit(main())
