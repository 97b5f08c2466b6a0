"""ForwardGNN and backpropagation on a graph of 100 000 nodes: time and saved bytes by size.

    python -m benchmarks.profiles.graph_scale            # the curves
    python -m benchmarks.claims graphs          # one point of them, with all epochs

The graph is random and undirected, with 2 000 000 directed edges, ten classes, 128 features that depend on
the class, and 10 % labeled nodes. A GCN of three layers of width 128 is trained for 100 epochs with all
labeled nodes in one step. All arms run in one process on one thread, without validation, after a short run
that is not timed. Measured is the processor time of training, including everything that is computed once.
There are two arms of backpropagation:

* ``plain``: a plain loop. The operator and its transpose are computed once, features are normalized once, the
  optimizer is fused, and the loss uses the labeled rows: six sparse products per epoch.
* ``backprop_gnn``: as plain, but the aggregates of the first layer are cached, and the last layer computes
the
  labeled rows alone: two sparse products and two on a tenth of the rows.

The claim is that both take at least 15 times as long as ForwardGNN, and save at least 10 times as many bytes
for backward.

Each curve varies one parameter. Its points are timed over a few epochs, which take at least as long as the
computations that are done once, and are extrapolated to 100 epochs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import bpfree
from benchmarks._record import changes, record
from bpfree.data import GraphData
from bpfree.graphs.graph import Graph, unit_rows
from bpfree.meters import saved_for_backward

FEATURES, HIDDEN, CLASSES, EPOCHS = 128, 128, 10, 100

#: The arms, and the smallest number of epochs that a point of a curve is timed over.
ARMS = {"forward_gnn": 20, "backprop_gnn": 4, "plain": 2}


def graph(nodes: int, edges: int, labelled: float) -> tuple[GraphData, GraphData]:
    """The labeled and the other nodes of a random graph."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(CLASSES, (nodes,), generator=generator)
    x = torch.randn(nodes, FEATURES, generator=generator)
    x += 0.5 * torch.randn(CLASSES, FEATURES, generator=generator)[y]
    half = torch.randint(nodes, (2, edges // 2), generator=generator)
    # Half of the edges connect nodes of one class.
    order = torch.argsort(y, stable=True)
    place = torch.empty(nodes, dtype=torch.long)
    place[order] = torch.arange(nodes)
    near = order[(place[half[0]] + torch.randint(1, nodes // 20, (edges // 2,), generator=generator)) % nodes]
    same_class = torch.rand(edges // 2, generator=generator) < 0.5
    half[1] = torch.where(same_class, near, half[1])
    shared = Graph(torch.cat([half, half.flip(0)], 1), nodes)
    ids = torch.randperm(nodes, generator=generator)
    cut = round(labelled * nodes)
    unlabeled = ids[cut:] if cut < nodes else ids[:1]
    return (
        GraphData(x, shared, ids[:cut], y[ids[:cut]], CLASSES, "random graph"),
        GraphData(x, shared, unlabeled, y[unlabeled], CLASSES, "random graph"),
    )


class Clock:
    """Processor time by window, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def window(self, name: str) -> Iterator[None]:
        """Time what runs inside."""
        start = time.process_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start

    @property
    def total(self) -> float:
        """Time of training, including everything that is computed once."""
        return sum(self.seconds.values())


class Plain:
    """A GCN with ReLU between its layers, and a plain training loop."""

    def __init__(self, data: GraphData, depth: int) -> None:
        widths = [FEATURES, *[HIDDEN] * (depth - 1), CLASSES]
        self.layers = [torch.nn.Linear(a, b) for a, b in pairwise(widths)]
        parameters = [p for layer in self.layers for p in layer.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=1e-2, fused=True)
        self.data, self.x = data, unit_rows(data.features)

    def scores(self) -> Tensor:
        """Class scores of all nodes, ``[n, C]``."""
        h, operator = self.x, self.data.graph.operator("gcn")
        for number, layer in enumerate(self.layers):
            h = operator @ ((h.relu() if number else h) @ layer.weight.T) + layer.bias
        return h

    def fit(self, epochs: int) -> None:
        """Take one step per epoch, on all labeled nodes."""
        for _ in range(epochs):
            loss = F.cross_entropy(self.scores()[self.data.ids], self.data.y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    @torch.no_grad()
    def evaluate(self, data: GraphData) -> dict[str, Any]:
        """Accuracy on the nodes of ``data``."""
        right = self.scores()[data.ids].argmax(1) == data.y
        return {"accuracy": right.float().mean().item()}


def trainer(kind: str, depth: int) -> bpfree.Trainer:
    """A new trainer with a GCN of ``depth`` layers."""
    net = bpfree.nn.GNN("gcn", [HIDDEN] * depth)
    options: dict[str, Any] = {"progress": False, "lr": 1e-2, "weight_decay": 0.0}
    if kind == "forward_gnn":
        return bpfree.ForwardGNN(net, **options)
    return bpfree.BackpropGNN(net, normalize=True, **options)


def run(kind: str, data: GraphData, depth: int, epochs: int) -> tuple[Any, float]:
    """Train with a new copy of the graph; returns the trained model and the seconds."""
    data = replace(data, graph=Graph(data.graph.edge_index, data.graph.n_nodes))
    if kind == "plain":
        start = time.process_time()
        plain = Plain(data, depth)
        plain.fit(epochs)
        return plain, time.process_time() - start
    clock, model = Clock(), trainer(kind, depth)
    model.build_for(data)  # type: ignore[arg-type]
    model.fit(data, epochs=epochs, batch_size=len(data), hooks=bpfree.Hooks(clock.window))
    return model, clock.total


def saved(kind: str, data: GraphData, depth: int) -> int:
    """Peak of the bytes saved for backward, over one epoch of each stage."""
    with saved_for_backward() as bytes_:
        run(kind, data, depth, 1)
    return bytes_.peak_bytes


def ratios(result: dict[str, Any]) -> dict[str, float]:
    """Seconds and bytes of the other arms divided by those of ForwardGNN."""
    ours, names = result["forward_gnn"], {"plain": "", "backprop_gnn": "lean_"}
    return {
        f"{prefix}{what}_ratio": result[kind][key] / ours[key]
        for kind, prefix in names.items()
        for what, key in (("time", "seconds"), ("saved", "saved_bytes"))
    }


def compare(data: GraphData, depth: int) -> dict[str, Any]:
    """Seconds of 100 epochs, extrapolated from a few, and saved bytes."""
    result: dict[str, Any] = {}
    for kind, epochs in ARMS.items():
        seconds = extrapolated(kind, data, depth, epochs)
        result[kind] = {"seconds": seconds, "saved_bytes": saved(kind, data, depth)}
    return result | ratios(result)


def extrapolated(kind: str, data: GraphData, depth: int, epochs: int) -> float:
    """Seconds of 100 epochs, extrapolated from a run of one epoch and a longer one.

    The number of epochs grows until the longer run dominates the noise of the first.
    """
    one = run(kind, data, depth, 1)[1]
    while (took := run(kind, data, depth, 1 + epochs)[1] - one) < one and epochs < EPOCHS - 1:
        epochs = min(4 * epochs, EPOCHS - 1)
    return one + (EPOCHS - 1) * took / epochs


def claim(nodes: int, epochs: int = EPOCHS) -> dict[str, Any]:
    """Seconds, saved bytes and accuracy of all arms on one graph with 20 edges per node, on one thread."""
    with one_thread():
        data, unlabeled = graph(nodes, 20 * nodes, 0.1)
        result: dict[str, Any] = {
            "nodes": nodes, "edges": data.graph.n_edges, "labelled": len(data), "depth": 3,
        }  # fmt: skip
        for kind in ARMS:
            model, seconds = run(kind, data, 3, epochs)
            accuracy = model.evaluate(unlabeled)["accuracy"]
            result[kind] = {"seconds": seconds, "saved_bytes": saved(kind, data, 3), "accuracy": accuracy}
    return result | ratios(result)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread inside, after a short run of every arm that loads all libraries."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    small, _ = graph(200, 4000, 0.5)
    for kind in ARMS:
        run(kind, small, 3, 2)
    yield
    torch.set_num_threads(before)


def holds(result: dict[str, Any]) -> bool:
    """Whether all ratios are large enough."""
    time = min(result["time_ratio"], result["lean_time_ratio"])
    return bool(time >= 15 and min(result["saved_ratio"], result["lean_saved_ratio"]) >= 10)


def main() -> int:
    """Measure the curves; 0 if the claim holds at its point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--nodes", type=int, default=100_000)
    arguments = parser.parse_args()
    nodes, edges = arguments.nodes, 20 * arguments.nodes
    with one_thread():
        data, _ = graph(nodes, edges, 0.1)
        middle = compare(data, 3)
        shares, depths, numbers = (0.02, 0.3, 0.64, 1.0), (1, 2, 8), (edges // 10, edges // 2, 2 * edges)
        curves = {
            "labelled": {str(s): compare(graph(nodes, edges, s)[0], 3) for s in shares},
            "depth": {str(d): compare(data, d) for d in depths},
            "edges": {str(e): compare(graph(nodes, e, 0.1)[0], 3) for e in numbers},
        }
    figures: dict[str, Any] = {"nodes": nodes, "edges": edges, "labelled": 0.1, "depth": 3, "threads": 1}
    figures |= {"middle": middle, "curves": curves}
    return record("graph_scale", figures, holds(middle), changes(parser, arguments))


if __name__ == "__main__":
    sys.exit(main())
