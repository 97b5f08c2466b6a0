"""Graphs with a virtual node for each class."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from bpfree.encodings.base import View
from bpfree.encodings.graph import GraphEncoding
from bpfree.graphs.graph import Graph
from bpfree.graphs.nodes import NodeQuery
from bpfree.graphs.states import NodeStates

Direction = Literal["one_way", "both_ways"]
VirtualFeatures = Literal["random", "zero"]


def virtual_features(
    features: Tensor, n_classes: int, kind: VirtualFeatures, generator: torch.Generator | None
) -> Tensor:
    """Features of C virtual nodes, ``[C, F]``: zeros, or random normal values.

    Args:
        features: Features of the nodes, ``[n, F]``.
        n_classes: C.
        kind: ``random`` or ``zero``.
        generator: For the random ones.
    """
    zeros = features.new_zeros(n_classes, features.shape[1])
    if kind == "random":
        return torch.randn(zeros.shape, generator=generator, device=features.device).to(features)
    return zeros


def append_virtual(features: Tensor, sparse: bool, virtual: Tensor) -> NodeStates:
    """States of nodes followed by C virtual nodes, without a graph yet.

    Args:
        features: Features of the nodes, ``[n, F]``.
        sparse: Whether most of them are zero.
        virtual: Features of the virtual nodes, ``[C, F]``.
    """
    n_classes = len(virtual)
    if not sparse or not virtual.any():
        return NodeStates((torch.cat([features, virtual]),), ())
    # A full row would fill the aggregates of its neighbors, which are sparse otherwise.
    codes = F.pad(torch.eye(n_classes).to(features), (0, 0, len(features), 0))
    return NodeStates((F.pad(features, (0, 0, 0, n_classes)),), (), codes=(codes,), codebook=virtual)


class VirtualNodes(GraphEncoding):
    """A virtual node for each class, joined to the training nodes of that class (arXiv 2403.11004).

    The virtual nodes are the last C. Virtual edges come from training labels alone.

    Args:
        direction: ``one_way``: edges from training nodes to virtual ones, which leave the states of all other
            nodes unchanged; ``both_ways``: in both directions.
        virtual: Features of virtual nodes: ``random``, normal values drawn once, or ``zero``.
        generator: For the random features.
        all_nodes: Whether training steps compute the outputs of all nodes, with the target -1 for nodes
            without a label.
        label_feedback: Whether the top block gets the labels as feedback.
        **options: As for `GraphEncoding`.
    """

    uses_labels = True
    virtual: Tensor

    def __init__(
        self,
        features: Tensor,
        graph: Graph,
        ids: Tensor,
        y: Tensor,
        n_classes: int,
        direction: Direction = "one_way",
        virtual: VirtualFeatures = "random",
        generator: torch.Generator | None = None,
        all_nodes: bool = False,
        label_feedback: bool = False,
    ) -> None:
        self.direction, self.all_nodes, self.label_feedback = direction, all_nodes, label_feedback
        self.leaks_own_label = label_feedback or direction == "both_ways"
        self.virtual = virtual_features(features, n_classes, virtual, generator)
        super().__init__(features, graph, ids, y, n_classes)

    def _set_graph(self, features: Tensor, graph: Graph, ids: Tensor, y: Tensor) -> None:
        super()._set_graph(features, graph, ids, y)
        self.n_real = len(features)
        self._states = append_virtual(features, self.sparse, self.virtual)
        self._virtual_nodes = torch.arange(self.n_real, self.n_real + self.n_classes, device=features.device)
        self._augmented: Graph | None = None

    def for_graph(self, features: Tensor, graph: Graph) -> Self:
        """As for the base class, with the training graph and its labels beside the other graph.

        The states of the virtual nodes come from the training nodes. No edge joins the two graphs.
        """
        other = copy.copy(self)
        both = torch.cat([features, self.features])
        other._set_graph(both, graph.disjoint_union(self.graph), self.ids + len(features), self.y)
        return other

    def states(self, view: View | None) -> NodeStates:
        if view not in (None, "plain"):
            return super().states(view)
        if self._augmented is None:
            self._augmented = self.augmented()
        return replace(self._states, graphs=(self._augmented,))

    def augmented(self) -> Graph:
        """The graph with the virtual nodes and their edges."""
        edges = torch.stack([self.ids, self.n_real + self.y])
        if self.direction == "both_ways":
            edges = torch.cat([edges, edges.flip(0)], 1)
        return self.graph.with_edges(edges, self.n_real + self.n_classes)

    def target_nodes(self, ids: Tensor) -> Tensor:
        """The samples' nodes, and the virtual ones last."""
        return torch.cat([ids, self._virtual_nodes])

    def training_query(self, x: Tensor, y: Tensor) -> tuple[NodeQuery, Tensor]:
        if not self.all_nodes:
            return super().training_query(x, y)
        target = y.new_full((self.n_real,), -1)
        target[x] = y
        return NodeQuery(repeated=True), target

    def message(self) -> Tensor | None:
        """Labels as probabilities, ``[n + C, C]``: those of training nodes, equal ones of other nodes."""
        if not self.label_feedback:
            return None
        labels = self.features.new_full((self.n_real + self.n_classes, self.n_classes), 1 / self.n_classes)
        labels[self.ids] = F.one_hot(self.y, self.n_classes).to(labels)
        labels[self.n_real :] = torch.eye(self.n_classes, device=labels.device)
        return labels
