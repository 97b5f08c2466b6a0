"""What trainers on graphs share: they are built for a graph and its training labels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from bpfree import _seeds
from bpfree._errors import BadValue
from bpfree.data import GraphData, TensorData
from bpfree.graph import Graph
from bpfree.graph_encodings import GraphEncoding
from bpfree.nn import GNN
from bpfree.trainers.base import Trainer
from bpfree.trainers.settings import kept_values


class GraphTrainer(Trainer):
    """Trains a `bpfree.nn.GNN` on `bpfree.data.GraphData`; a sample is the number of a node, or two.

    The network is grown when the graph is known, with weights drawn from the trainer's seed.
    """

    net: GNN

    def __init__(self, net: nn.Module, **options: Any) -> None:
        self._bound: GraphData | None = None
        super().__init__(net, **options)
        if not isinstance(net, GNN):
            raise BadValue(f"{self.id} trains a bpfree.nn.GNN, not a {type(net).__name__}")

    # ---- what a family says ----------------------------------------------------------------------------

    @abstractmethod
    def make_encoding(self, data: GraphData) -> GraphEncoding:
        """How the nodes of ``data``, the training data, are shown."""

    @property
    def bound(self) -> GraphData:
        """The training data that the trainer was built for.

        Raises:
            BadValue: Before `build_for` or `fit`.
        """
        if self._bound is None:
            raise BadValue(f"{self.id} has not seen its graph yet: call fit or build_for first")
        return self._bound

    def stream(self, purpose: str) -> torch.Generator:
        """A random stream of the run's, on the trainer's device."""
        return _seeds.generator(self.device, self.seed, purpose)

    # ---- building --------------------------------------------------------------------------------------

    def build(self, sample_shape: Sequence[int], n_classes: int) -> None:
        """Nothing but a check: a trainer on a graph is built for its training data, by `build_for`.

        Raises:
            BadValue: If that was not done, or for another number of classes.
        """
        if self.bound.n_classes != n_classes:
            raise BadValue(
                f"the trainer was built for {self.bound.n_classes} classes, the data have {n_classes}"
            )

    def build_for(self, data: TensorData) -> None:
        """Make layers, heads and optimizers for these training data, or show these to layers made before.

        Raises:
            BadValue: If the data are no graph, or not one like that seen before.
        """
        given: Any = data
        if not isinstance(given, GraphData):
            raise BadValue(f"{self.id} trains on bpfree.data.GraphData, see bpfree.data.load_graph")
        graph = given.to(self.device)
        before, self._bound = self._bound, graph
        if before is not None and (before.sample_shape, before.n_classes) != (
            graph.sample_shape,
            graph.n_classes,
        ):
            self._bound = before
            raise BadValue(f"the trainer was built for {before!r}; it cannot train on {graph!r}")
        if self._cascade is not None:
            if before is not graph:
                self._cascade.encoding = self.make_encoding(graph)
            return
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            _seeds.seed_global(self.device, self.seed, "heads")
            cascade = self.make_cascade(graph.n_classes).to(self.device)
            few = _two_nodes(graph)
            cascade.encoding = self.make_encoding(few)
            cascade.eval().build(few.ids, graph.n_classes, kept_values(self.settings))
            cascade.encoding = self.make_encoding(graph)
        self._adopt(cascade, graph.n_classes, graph.sample_shape)

    def _check_shape(self, sample_shape: Sequence[int]) -> None:
        if tuple(sample_shape) != self.bound.sample_shape:
            raise BadValue(
                f"{self.id}: nodes have features {tuple(sample_shape)}, expected {self.bound.sample_shape}"
            )

    def _check_batch(self, x: Tensor, y: Tensor) -> None:
        self.data_of(x, y)

    # ---- using -----------------------------------------------------------------------------------------

    def data_of(self, x: Tensor, y: Tensor) -> TensorData:
        """Nodes ``x [B]``, or pairs ``[B, 2]``, with labels ``y [B]``, on the graph that training saw."""
        b = self.bound
        found = GraphData(b.features, b.graph, x, y, b.n_classes, b.name).to(self.device)
        return cast(TensorData, found)


def _two_nodes(data: GraphData) -> GraphData:
    """Data of the kind of ``data`` with two nodes: what depends on shapes alone needs no more to be built."""
    ids = torch.arange(2, device=data.ids.device)
    ids = ids if data.ids.ndim == 1 else ids.repeat(2, 1)
    graph = Graph(data.graph.edge_index[:, :0], 2)
    return GraphData(data.features[:2], graph, ids, torch.zeros_like(ids.flatten()[:2]), data.n_classes)
