"""Encodings of nodes, and of pairs of nodes, of a graph: as they are."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, Self
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from bpfree._errors import BadValue
from bpfree._feature_store import Store
from bpfree._types import JsonObject
from bpfree.encodings.base import Encoding, View
from bpfree.graphs.cache import NodeCache
from bpfree.graphs.graph import Graph, VersionCheck, mostly_zero
from bpfree.graphs.nodes import NodeQuery, Nodes
from bpfree.graphs.states import NodeStates


class GraphEncoding(Encoding):
    """Nodes as they are, on their graph. The base of the other encodings of graphs.

    A sample is the number of a node, and each row of a block's output belongs to a node. The states of the
    training graph are created once. Samples of another graph have the encoding that `for_graph` returns.

    Args:
        features: Features of the nodes, ``[n, F]``.
        graph: The training graph.
        ids: The training nodes, ``[M]``.
        y: Their labels, ``[M]``.
        n_classes: Number of classes C.

    Attributes:
        uses_labels: Whether predictions depend on the labels of training nodes.
        leaks_own_label: Whether the prediction for a training node depends on its own label.
        virtual: Features of virtual nodes, ``[C, F]``; None without virtual nodes.
    """

    transductive = True
    uses_labels = False
    leaks_own_label = False
    virtual: Tensor | None = None

    def __init__(self, features: Tensor, graph: Graph, ids: Tensor, y: Tensor, n_classes: int) -> None:
        self.n_classes = n_classes
        self._set_graph(features, graph, ids, y)

    def _set_graph(self, features: Tensor, graph: Graph, ids: Tensor, y: Tensor) -> None:
        """Use a graph and its labels, and drop what was computed from another."""
        self.features, self.graph, self.ids, self.y = features, graph, ids, y
        self.sparse = mostly_zero(features)
        self._version = VersionCheck(features, "features")
        self._all_target_nodes: Tensor | None = None
        self._caches: WeakValueDictionary[tuple[Any, ...], NodeCache] = WeakValueDictionary()
        self._training_nodes: Nodes | None = None

    def set_virtual(self, features: Tensor) -> None:
        """Set the features of the virtual nodes, ``[C, F]``."""
        self.virtual = features
        self._set_graph(self.features, self.graph, self.ids, self.y)

    def __getstate__(self) -> JsonObject:
        """All but what is found by the addresses of tensors, which differ in a copy."""
        left_out = ("_caches", "_training_nodes")
        return {key: value for key, value in self.__dict__.items() if key not in left_out}

    def __setstate__(self, state: JsonObject) -> None:
        self.__dict__.update(state, _caches=WeakValueDictionary(), _training_nodes=None)

    def is_of_graph(self, features: Tensor, graph: Graph) -> bool:
        """Whether the training graph has these features ``[n, F]`` and edges, in any order of the edges."""
        x = self.features
        same = features is x or (features.shape == x.shape and torch.equal(features, x))
        return same and graph.equals(self.graph)

    def for_graph(self, features: Tensor, graph: Graph) -> Self:
        """The encoding for nodes of another graph, of which no label is known.

        Args:
            features: Features of its nodes, ``[n', F]``. The nodes have the same numbers in the encoding.
            graph: Its edges.
        """
        other = copy.copy(self)
        other._set_graph(features, graph, self.ids, self.y)
        return other

    # ---- states ----------------------------------------------------------------------------------------

    def nodes(self, view: View | None, cache: bool = True, store: Store | None = None) -> Nodes:
        """The states of all nodes, with a query for all.

        Args:
            view: The input kind that a readout needs; None: that of training.
            cache: Whether results computed from them may be cached. All inputs with the same states and
                graphs share one cache, which lives as long as one of them.
            store: Where results are stored; by default in memory.

        Raises:
            BadValue: If this encoding has no such input, or the features were changed in place.
        """
        self._version.check(self.features)
        states = replace(self.states(view), sparse=self.sparse)
        if not cache:
            return Nodes(states, cache=NodeCache(enabled=False))
        store = store or Store()
        sources: tuple[Tensor | Graph, ...] = (*states.states, *states.codes, *states.graphs)
        key = (store.folder, *map(id, sources))
        node_cache = self._caches.get(key)
        if node_cache is None:
            node_cache = self._caches[key] = NodeCache(store, sources=sources)
        return Nodes(states, cache=node_cache)

    def states(self, view: View | None) -> NodeStates:
        """The states of all nodes, for `nodes`."""
        if view not in (None, "plain"):
            raise BadValue(f"a readout needs the {view!r} input, which needs an encoding with labels")
        return NodeStates((self.features,), (self.graph,))

    # ---- queries ---------------------------------------------------------------------------------------

    def target_nodes(self, ids: Tensor) -> Tensor:
        """The nodes whose outputs a loss needs for the samples ``ids``."""
        return ids

    def targets(self, y: Tensor) -> Tensor:
        """The targets of a loss for the labels ``y [B]``."""
        return y

    def training_query(self, x: Tensor, y: Tensor) -> tuple[NodeQuery, Tensor]:
        """The query of a training step on the samples ``x`` with labels ``y``, and the targets.

        For all training samples it is the same in any order of them.
        """
        if self._is_full_batch(x, y):
            if self._all_target_nodes is None:
                self._all_target_nodes = self.target_nodes(self.ids)
            return NodeQuery(self._all_target_nodes, repeated=True), self.targets(self.y)
        return NodeQuery(self.target_nodes(x)), self.targets(y)

    def evaluation_query(self, x: Tensor) -> NodeQuery:
        """The query by which readouts score the samples ``x``, once or repeatedly."""
        return NodeQuery(self.target_nodes(x), repeated=True)

    def _is_full_batch(self, x: Tensor, y: Tensor) -> bool:
        """Whether ``x`` and ``y`` are all training samples, in any order."""
        if x is self.ids and y is self.y:
            return True
        if len(x) != len(self.ids):
            return False
        order, own_order = x.argsort(), self.ids.argsort()
        return torch.equal(x[order], self.ids[own_order]) and torch.equal(y[order], self.y[own_order])

    def encode(self, x: Tensor, y: Tensor, random_part: Tensor | None) -> tuple[Nodes, Tensor]:
        self._version.check(self.features)
        if self._training_nodes is None:
            self._training_nodes = self.nodes(None)
        query, target = self.training_query(x, y)
        return self._training_nodes.with_query(query), target

    def view(self, x: Tensor, view: View) -> Nodes:
        """The samples ``x`` on the graph as it is in training, so that their own labels may reach them."""
        if x.dtype != torch.int64 or not ((x >= 0) & (x < len(self.features))).all():
            last = len(self.features) - 1
            raise BadValue(f"x is {x.dtype} {list(x.shape)}: expected int64 numbers of nodes, 0..{last}")
        return self.nodes(view, cache=False).with_query(self.evaluation_query(x))


class Pairs(GraphEncoding):
    """Nodes as they are; samples are pairs of them. The metric is the area under the ROC curve."""

    def training_query(self, x: Tensor, y: Tensor) -> tuple[NodeQuery, Tensor]:
        return NodeQuery(repeated=True), torch.cat([x, y.unsqueeze(1)], 1)

    def evaluation_query(self, x: Tensor) -> NodeQuery:
        return NodeQuery(pairs=x, repeated=True)
