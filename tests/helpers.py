"""Small data sets and networks for tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

import bpfree
from bpfree.data import GraphData, TensorData
from bpfree.graphs.graph import Graph
from bpfree.graphs.layers import GraphKind
from bpfree.trainers import TRAINERS, GraphTrainer
from bpfree.trainers.physical import PhysicalTrainer

CLASSES = 3

#: The trainers of ordinary networks on independent samples: not those on graphs, or with devices.
PLAIN_TRAINERS = {
    name: kind for name, kind in TRAINERS.items() if not issubclass(kind, GraphTrainer | PhysicalTrainer)
}


def vectors(n: int = 40, width: int = 12, seed: int = 0) -> TensorData:
    """Random vectors in [0, 1]. With batches of 16, the last batch of n = 40 is shorter."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, width, generator=generator)
    return TensorData(x, torch.randint(CLASSES, (n,), generator=generator), CLASSES)


def images(n: int = 40, size: int = 8, channels: int = 1, seed: int = 0) -> TensorData:
    """Random images in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, channels, size, size, generator=generator)
    return TensorData(x, torch.randint(CLASSES, (n,), generator=generator), CLASSES)


def easy(n: int = 120, width: int = 12, seed: int = 0) -> TensorData:
    """Vectors that are easy to classify: for each class, another third of the inputs is large."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (n,), generator=generator)
    third = torch.arange(width) // (width // CLASSES)
    x = (third == y.unsqueeze(1)).float() * 0.8 + 0.2 * torch.rand(n, width, generator=generator)
    return TensorData(x, y, CLASSES)


def make_mlp(*hidden: int, width: int = 12, seed: int = 0, **options: Any) -> nn.Sequential:
    """An MLP, with the same weights in each call."""
    torch.manual_seed(seed)
    return bpfree.nn.mlp([width, *(hidden or (16, 16)), CLASSES], **options)


def make_cnn(seed: int = 0, **options: Any) -> nn.Sequential:
    """A convolutional network for `images`, with the same weights in each call."""
    torch.manual_seed(seed)
    return bpfree.nn.cnn((1, 8, 8), CLASSES, channels=(4, 6), **options)


def nodes(n: int = 60, width: int = 12, known: int = 40, seed: int = 0) -> GraphData:
    """A random graph. Some of its nodes have labels, which depend on the features."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, width, generator=generator)
    edges = torch.randint(n, (2, 3 * n), generator=generator)
    edges = torch.unique(torch.cat([edges, edges.flip(0)], 1)[:, :], dim=1)
    ids = torch.randperm(n, generator=generator)[:known]
    y = x[:, :CLASSES].argmax(1)
    return GraphData(x, Graph(edges[:, edges[0] != edges[1]], n), ids, y[ids], CLASSES)


def pairs(seed: int = 0) -> GraphData:
    """Edges of the graph of `nodes`, and as many random pairs of nodes."""
    data = nodes(seed=seed)
    edges = data.graph.edge_index.T[:20]
    others = torch.randint(60, (20, 2), generator=torch.Generator().manual_seed(seed))
    y = torch.arange(40) < 20
    return GraphData(data.features, data.graph, torch.cat([edges, others]), y.long(), 2)


def make_gnn(kind: GraphKind = "gcn", hidden: tuple[int, ...] = (16, 16)) -> bpfree.nn.GNN:
    """A graph network."""
    return bpfree.nn.GNN(kind, hidden)


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the state dict."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@contextmanager
def heeding_interrupts() -> Iterator[None]:
    """A context in which Ctrl-C ends started processes, even if the shell runs tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
