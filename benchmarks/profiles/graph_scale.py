"""ForwardGNN and backpropagation on a graph of 100 000 nodes: time, saved bytes, and where the gain ends.

    python -m benchmarks.profiles.graph_scale            # the curves
    python -m benchmarks.claims graphs          # one point of them, in full

The graph is random, undirected, with 2 000 000 directed edges; ten classes, 128 features that have to do with
them, 10 % of the nodes labelled; a GCN of three layers, 128 wide, 100 epochs, all labelled nodes a step. All
run in one process on one thread, without validation, after a short run that is not timed. What is timed is
training, with all that is made once for it, in seconds of the processor, so that what else the machine does
counts little. Backpropagation is there twice:

* ``plain``: the loop as one writes it. The operator and its transpose are made once, features have unit
  length from the start, the optimizer is fused, the loss is that of labelled rows: six sparse products an
  epoch.
* ``backprop_gnn``: nothing is made twice, and nothing unasked. What the first layer aggregates is kept, too,
  and of the last layer labelled rows alone are made: two sparse products and two tenths of others.

The claim is that both take at least 15 times as long, and save at least 10 times as many bytes for backward.

The curves change one thing at a time. Their points are timed over a few epochs, at least as long as what is
done once takes, and reckoned up to 100: that, and 100 times what an epoch takes.
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

#: Who is compared, and over how many epochs at least a point of a curve is timed.
ARMS = {"forward_gnn": 20, "backprop_gnn": 4, "plain": 2}


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
    """Seconds of the processor by window."""

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
        """Training, and what was made once for it."""
        return sum(self.seconds.values())


class Plain:
    """A GCN and its loop, as one writes them: ReLU between the layers, scores from the last."""

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
        """As many steps, each on all labelled nodes."""
        for _ in range(epochs):
            loss = F.cross_entropy(self.scores()[self.data.ids], self.data.y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    @torch.no_grad()
    def evaluate(self, data: GraphData) -> dict[str, Any]:
        """Share of nodes that are classified rightly."""
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
    """Train; what was trained, and the seconds. All that is made of the graph is made anew."""
    data = replace(data, graph=Graph(data.graph.edge_index, data.graph.n_nodes))
    if kind == "plain":
        start = time.process_time()
        plain = Plain(data, depth)
        plain.fit(epochs)
        return plain, time.process_time() - start
    clock, made = Clock(), trainer(kind, depth)
    made.build_for(data)  # type: ignore[arg-type]
    made.fit(data, epochs=epochs, batch_size=len(data), hooks=bpfree.Hooks(clock.window))
    return made, clock.total


def saved(kind: str, data: GraphData, depth: int) -> int:
    """Peak of the bytes saved for backward, over one epoch of every stage."""
    with saved_for_backward() as bytes_:
        run(kind, data, depth, 1)
    return bytes_.peak_bytes


def ratios(found: dict[str, Any]) -> dict[str, float]:
    """How many times ForwardGNN's seconds and bytes the others take."""
    ours, names = found["forward_gnn"], {"plain": "", "backprop_gnn": "lean_"}
    return {
        f"{prefix}{what}_ratio": found[kind][key] / ours[key]
        for kind, prefix in names.items()
        for what, key in (("time", "seconds"), ("saved", "saved_bytes"))
    }


def compare(data: GraphData, depth: int) -> dict[str, Any]:
    """Seconds of 100 epochs, reckoned from few, and bytes."""
    found: dict[str, Any] = {}
    for kind, epochs in ARMS.items():
        seconds = reckoned(kind, data, depth, epochs)
        found[kind] = {"seconds": seconds, "saved_bytes": saved(kind, data, depth)}
    return found | ratios(found)


def reckoned(kind: str, data: GraphData, depth: int, epochs: int) -> float:
    """Seconds of 100 epochs, from one and at least so many more.

    More until they take longer than the one and what is done once: what is shorter drowns in its noise.
    """
    one = run(kind, data, depth, 1)[1]
    while (took := run(kind, data, depth, 1 + epochs)[1] - one) < one and epochs < EPOCHS - 1:
        epochs = min(4 * epochs, EPOCHS - 1)
    return one + (EPOCHS - 1) * took / epochs


def claim(nodes: int, epochs: int = EPOCHS) -> dict[str, Any]:
    """Seconds, saved bytes and accuracy of all on one graph, 20 edges a node, on one thread."""
    with one_thread():
        data, rest = graph(nodes, 20 * nodes, 0.1)
        found: dict[str, Any] = {
            "nodes": nodes, "edges": data.graph.n_edges, "labelled": len(data), "depth": 3,
        }  # fmt: skip
        for kind in ARMS:
            made, seconds = run(kind, data, 3, epochs)
            accuracy = made.evaluate(rest)["accuracy"]
            found[kind] = {"seconds": seconds, "saved_bytes": saved(kind, data, 3), "accuracy": accuracy}
    return found | ratios(found)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread inside, after a short run by everybody: what is loaded late is loaded by then."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    small, _ = graph(200, 4000, 0.5)
    for kind in ARMS:
        run(kind, small, 3, 2)
    yield
    torch.set_num_threads(before)


def holds(found: dict[str, Any]) -> bool:
    """Whether the ratios are large enough, those to the leanest way of backpropagation among them."""
    time = min(found["time_ratio"], found["lean_time_ratio"])
    return bool(time >= 15 and min(found["saved_ratio"], found["lean_saved_ratio"]) >= 10)


def main() -> int:
    """Measure the curves; 0 if the point that the claim is about is as claimed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--nodes", type=int, default=100_000)
    given = parser.parse_args()
    nodes, edges = given.nodes, 20 * given.nodes
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
    return record("graph_scale", figures, holds(middle), changes(parser, given))


if __name__ == "__main__":
    sys.exit(main())
