"""Labels as parts of a graph's input, for Forward-Forward: as features, or as edges to virtual nodes."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from bpfree._errors import BadValue
from bpfree.encodings.base import View
from bpfree.encodings.graph import GraphEncoding
from bpfree.encodings.virtual_nodes import VirtualFeatures, append_virtual, virtual_features
from bpfree.graphs.graph import Graph
from bpfree.graphs.states import NodeStates


class LabeledGraphs(GraphEncoding, ABC):
    """Forward-Forward on graphs: the true labels in the first variant, wrong ones in the C - 1 others.

    Each training node has one random order of its wrong classes, drawn once. The candidates input gives all
    other nodes one class after another, and training nodes their own. The nodes of another graph all get one
    class after another.

    Args:
        generator: For the order of the wrong classes.
        **options: As for `GraphEncoding`.
    """

    uses_labels = leaks_own_label = True

    def __init__(
        self,
        features: Tensor,
        graph: Graph,
        ids: Tensor,
        y: Tensor,
        n_classes: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(features, graph, ids, y, n_classes)
        order = torch.rand(len(y), n_classes, generator=generator, device=y.device)
        order[torch.arange(len(y), device=y.device), y] = -1.0  # the true class comes first
        self.labels = order.argsort(1).T.contiguous()

    def for_graph(self, features: Tensor, graph: Graph) -> Self:
        other = copy.copy(self)
        other.labels = self.labels[:, :0]
        other._set_graph(features, graph, self.ids[:0], self.y[:0])
        return other

    def states(self, view: View | None) -> NodeStates:
        if view is None:
            return self.labeled_states(list(self.labels), None)
        if view != "candidates":
            raise BadValue(f"a readout needs the {view!r} input: these blocks score candidate labels only")
        return self.labeled_states([self.y] * self.n_classes, torch.arange(self.n_classes))

    def check_training_nodes(self, x: Tensor, y: Tensor) -> None:
        """Check that the nodes ``x [B]`` are training nodes with the labels ``y [B]``.

        Raises:
            BadValue: If one is not.
        """
        label = torch.full((len(self.features),), -1, device=y.device)
        label[self.ids] = self.y
        if bad := (label[x] != y).nonzero().flatten().tolist():
            raise BadValue(
                f"node {int(x[bad[0]])} with label {int(y[bad[0]])} is not among the training data that the "
                "trainer was built for, whose labels are part of its input: call build_for with other data "
                "first"
            )

    @abstractmethod
    def labeled_states(self, labels: list[Tensor], other_labels: Tensor | None) -> NodeStates:
        """States in one variant for each of ``labels``.

        Args:
            labels: Labels of the training nodes in each variant, ``[M]``.
            other_labels: The label of all other nodes in each variant; None: they have none.
        """

    def targets(self, y: Tensor) -> Tensor:
        """1 for the rows of the first variant, 0 for the others, ``[C * B]``."""
        first = torch.arange(self.n_classes, device=y.device) == 0
        return first.long().repeat_interleave(len(y))


class AppendedLabels(LabeledGraphs):
    """The label follows the features, ``[x, label]``; without a label, it is 1/C for each class (FF-LA)."""

    def labeled_states(self, labels: list[Tensor], other_labels: Tensor | None) -> NodeStates:
        codes, c = [], self.n_classes
        for variant, variant_labels in enumerate(labels):
            code = self.features.new_full((len(self.features), c), 1 / c)
            if other_labels is not None:
                code.zero_()[:, other_labels[variant]] = 1.0
            code[self.ids] = F.one_hot(variant_labels, c).to(code)
            codes.append(code)
        width = self.features.shape[1]
        codebook = torch.eye(width + c, device=self.features.device)[width:].to(self.features)
        states = F.pad(self.features, (0, c))
        return NodeStates((states,), (self.graph,), codes=tuple(codes), codebook=codebook)


class LinkedLabels(LabeledGraphs):
    """The label is an edge to the virtual node of a class (FF-VN).

    The edges go in both directions: with edges to virtual nodes only, no node's state would depend on its
    label. In training, the blocks above the first continue from the states of the true labels.

    Args:
        virtual: Features of the virtual nodes, as for `VirtualNodes`.
        **options: As for `LabeledGraphs`.
    """

    def __init__(
        self,
        features: Tensor,
        graph: Graph,
        ids: Tensor,
        y: Tensor,
        n_classes: int,
        generator: torch.Generator | None = None,
        virtual: VirtualFeatures = "random",
    ) -> None:
        # The order of the wrong classes is drawn first.
        super().__init__(features, graph, ids, y, n_classes, generator)
        self.set_virtual(virtual_features(features, n_classes, virtual, generator))

    def _set_graph(self, features: Tensor, graph: Graph, ids: Tensor, y: Tensor) -> None:
        super()._set_graph(features, graph, ids, y)
        if self.virtual is not None:
            self._states = append_virtual(features, self.sparse, self.virtual)

    def labeled_states(self, labels: list[Tensor], other_labels: Tensor | None) -> NodeStates:
        n = len(self.features)
        unlabeled = torch.ones(n, dtype=torch.bool, device=self.ids.device)
        unlabeled[self.ids] = False
        other_nodes = unlabeled.nonzero().squeeze(1)
        graphs = []
        for variant, variant_labels in enumerate(labels):
            edges = torch.stack([self.ids, n + variant_labels])
            if other_labels is not None:
                class_node = n + int(other_labels[variant])
                edges = torch.cat(
                    [edges, torch.stack([other_nodes, torch.full_like(other_nodes, class_node)])], 1
                )
            edges = torch.cat([edges, edges.flip(0)], 1)
            graphs.append(self.graph.with_edges(edges, n + self.n_classes))
        return replace(self._states, graphs=tuple(graphs), pass_first_variant=other_labels is None)
