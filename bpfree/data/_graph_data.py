"""Labelled nodes, or pairs of nodes, of a graph that is held whole on one device."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from bpfree._errors import BadValue
from bpfree.graph import Graph


@dataclass(frozen=True, eq=False, repr=False)
class GraphData:
    """Some nodes of a graph, or pairs of them, with their labels. A sample is a node's number, or two.

    Attributes:
        features: Of all nodes, float ``[n, F]``.
        graph: Along whose edges these samples may be told.
        ids: int64 ``[M]``, the nodes; or ``[M, 2]``, pairs of nodes.
        y: int64 ``[M]``, classes of the nodes; 1 for a pair that is an edge, 0 for one that is none.
        n_classes: Number of classes; 2 for pairs.
        name: What to call the data in messages and reports.

    Raises BadValue if these do not fit together.
    """

    features: Tensor
    graph: Graph
    ids: Tensor
    y: Tensor
    n_classes: int
    name: str = "graph"

    augmented = False

    def __post_init__(self) -> None:
        n = self.graph.n_nodes
        if not self.features.is_floating_point() or self.features.ndim != 2 or len(self.features) != n:
            raise BadValue(
                f"{self.name}: features are {self.features.dtype} {list(self.features.shape)}; "
                f"expected floats [{n}, F], one row for each node"
            )
        if (
            self.ids.dtype != torch.int64
            or self.ids.ndim not in (1, 2)
            or self.ids.shape[1:] not in ((), (2,))
        ):
            raise BadValue(
                f"{self.name}: ids are {self.ids.dtype} {list(self.ids.shape)}; expected int64 [M] or [M, 2]"
            )
        if self.y.dtype != torch.int64 or self.y.shape != self.ids.shape[:1] or not len(self.y):
            raise BadValue(
                f"{self.name}: y is {self.y.dtype} {list(self.y.shape)}; expected int64 [{len(self.ids)}], "
                "one label for each sample, and at least one sample"
            )
        for what, values, top in (("ids", self.ids, n), ("y", self.y, self.n_classes)):
            low, high = int(values.min()), int(values.max())
            if low < 0 or high >= top:
                raise BadValue(f"{self.name}: {what} has values {low}..{high}; expected 0..{top - 1}")

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        kind = "pairs" if self.ids.ndim == 2 else "nodes"
        return (
            f"GraphData({self.name!r}, {len(self)} {kind} of {self.graph.n_nodes} nodes with "
            f"{self.features.shape[1]} features and {self.graph.n_edges} directed edges, "
            f"{self.n_classes} classes)"
        )

    @property
    def x(self) -> Tensor:
        """What the samples are told by: the features."""
        return self.features

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of a node's features."""
        return tuple(self.features.shape[1:])

    def to(self, device: str | torch.device) -> GraphData:
        """The same data on ``device``."""
        moved: dict[str, Any] = {k: getattr(self, k).to(device) for k in ("features", "graph", "ids", "y")}
        return replace(self, **moved)

    def take(self, indices: Tensor) -> GraphData:
        """The samples at ``indices``, int64 ``[M']``, as data of their own on the same graph."""
        return replace(self, ids=self.ids[indices], y=self.y[indices])

    def batch(self, indices: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """The nodes ``[B]`` or pairs ``[B, 2]`` at ``indices``, and their labels ``[B]``."""
        return self.ids.index_select(0, indices), self.y.index_select(0, indices)

    def content(self) -> list[Any]:
        """What tells two data sets apart."""
        digest = hashlib.sha256()
        some = self.features[:: max(1, self.graph.n_nodes // 64)].contiguous()
        for tensor in (self.ids, self.y, self.graph.edge_index, some):
            digest.update(tensor.cpu().numpy().tobytes())
        return [self.name, len(self), list(self.features.shape), digest.hexdigest()]
