"""Labeled nodes, or labeled pairs of nodes, of a graph that is stored on one device."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from bpfree._errors import BadValue
from bpfree.graphs.graph import Graph, positive


@dataclass(frozen=True, eq=False, repr=False)
class GraphData:
    """Labeled nodes, or labeled pairs of nodes, of a graph. A sample is the index of a node, or two indices.

    Attributes:
        features: Features of all nodes, dense floats ``[n, F]``.
        graph: Graph whose edges may be used to predict the labels of these samples.
        ids: Indices of the labeled nodes, int64 ``[M]``, or of the labeled pairs, int64 ``[M, 2]``. A boolean
            mask ``[n]`` of nodes is converted to indices.
        y: Labels, int64 ``[M]``: the class of a node; 1 if a pair is an edge and 0 if not. With a mask, the
            labels ``[n]`` of all nodes may be given; labels outside the mask are not used.
        n_classes: Number of classes; 2 for pairs.
        name: Name of the data in messages and reports.

    Raises:
        BadValue: If these values are inconsistent.
    """

    features: Tensor
    graph: Graph
    ids: Tensor
    y: Tensor
    n_classes: int
    name: str = "graph"

    augmented = False

    def __post_init__(self) -> None:
        self._check_tensors()
        self._check_ids()
        self._check_labels()

    @classmethod
    def from_pyg(cls, data: Any, part: Literal["train", "val", "test"] = "train") -> GraphData:
        """Convert the labeled nodes of one split of a ``torch_geometric.data.Data``.

        Args:
            data: Object with ``x``, ``edge_index``, ``y`` and boolean masks, as
                ``torch_geometric.data.Data``.
            part: Mask to use: ``train``, ``val`` or ``test``.

        Raises:
            BadValue: If an attribute is missing, or if there are edge weights or edge features, or a mask of
                several splits, none of which is supported.
        """
        name = f"{part}_mask"
        if missing := [key for key in ("x", "edge_index", "y", name) if getattr(data, key, None) is None]:
            raise BadValue(
                f"the {type(data).__name__} has no {' and no '.join(missing)}; expected x, edge_index, y and "
                f"{name}; for other data call GraphData(x, Graph(edge_index, n_nodes), ids, y, n_classes)"
            )
        for key in ("edge_weight", "edge_attr"):
            if getattr(data, key, None) is not None:
                raise BadValue(
                    f"the {type(data).__name__} has {key}, which is not supported; remove it first"
                )
        n_classes = int(data.y.max()) + 1
        return cls(data.x, Graph(data.edge_index, len(data.x)), getattr(data, name), data.y, n_classes, part)

    # ---- checks ----------------------------------------------------------------------------------------

    def _check_tensors(self) -> None:
        if not isinstance(self.graph, Graph):
            raise BadValue(
                f"{self.name}: graph is a {type(self.graph).__name__}; expected a Graph; create it by "
                "Graph(edge_index, n_nodes)"
            )
        n = self.graph.n_nodes
        for key in ("features", "ids", "y"):
            value = getattr(self, key)
            if not isinstance(value, Tensor):
                raise BadValue(f"{self.name}: {key} is a {type(value).__name__}; expected a tensor")
        x = self.features
        if x.layout != torch.strided:
            raise BadValue(
                f"{self.name}: features are {x.layout}; expected a dense tensor; use features.to_dense()"
            )
        if not x.is_floating_point() or x.ndim != 2 or len(x) != n or not x.shape[1]:
            raise BadValue(
                f"{self.name}: features are {x.dtype} {list(x.shape)}; "
                f"expected floats [{n}, F], one row for each node"
            )
        devices = {str(t.device) for t in (x, self.graph.edge_index, self.ids, self.y)}
        if len(devices) > 1:
            raise BadValue(
                f"{self.name}: the tensors are on {' and '.join(sorted(devices))}; move all to one device"
            )

    def _check_ids(self) -> None:
        n, ids = self.graph.n_nodes, self.ids
        if ids.dtype == torch.bool:
            if ids.ndim != 1 or len(ids) != n:
                several = (
                    f"; select one of several masks [{n}, S], such as ids[:, 0]" if ids.ndim == 2 else ""
                )
                raise BadValue(
                    f"{self.name}: ids is a mask {list(ids.shape)}; expected [{n}], one value for each node"
                    + several
                )
            if len(self.y) == n and self.y.ndim == 1:
                object.__setattr__(self, "y", self.y[ids])
            object.__setattr__(self, "ids", ids.nonzero().squeeze(1))
            ids = self.ids
        if ids.dtype != torch.int64 or ids.ndim not in (1, 2) or ids.shape[1:] not in ((), (2,)):
            raise BadValue(
                f"{self.name}: ids are {ids.dtype} {list(ids.shape)}; expected indices of nodes, int64 [M], "
                f"or of pairs of nodes, int64 [M, 2], or a boolean mask [{n}]"
            )
        if len(ids) > 2 * ids.ndim and int(ids.min()) >= 0 and int(ids.max()) <= 1:
            raise BadValue(
                f"{self.name}: ids {list(ids.shape)} are all 0 or 1, like a mask, but integers are indices "
                "of nodes; for a mask use ids.bool()"
                + ("[:, 0], the mask of one split" if ids.ndim == 2 else "")
            )

    def _check_labels(self) -> None:
        n, ids, y = self.graph.n_nodes, self.ids, self.y
        positive(f"{self.name}: n_classes", self.n_classes)
        if ids.ndim == 2 and self.n_classes != 2:
            raise BadValue(
                f"{self.name}: n_classes is {self.n_classes}; expected 2 for pairs of nodes (edge or no edge)"
            )
        if y.dtype != torch.int64 or y.shape != ids.shape[:1] or not len(y):
            of_all = (
                "; select the labels of these nodes by y[ids]" if y.shape == (n,) and ids.ndim == 1 else ""
            )
            raise BadValue(
                f"{self.name}: y is {y.dtype} {list(y.shape)}; expected int64 [{len(ids)}], "
                f"with one label for each sample and at least one sample{of_all}"
            )
        if unlabeled := int((y == -1).sum()):
            raise BadValue(
                f"{self.name}: y is -1 (no label) for {unlabeled} of {len(y)} samples; leave these out by "
                "ids[y >= 0] and y[y >= 0]"
            )
        for key, values, size in (("ids", ids, n), ("y", y, self.n_classes)):
            low, high = int(values.min()), int(values.max())
            if low < 0 or high >= size:
                raise BadValue(f"{self.name}: {key} has values {low}..{high}; expected 0..{size - 1}")
        if ids.ndim == 1:
            label = y.new_empty(n)
            label[ids] = y
            if (bad := (label[ids] != y).nonzero()).numel():
                raise BadValue(
                    f"{self.name}: node {int(ids[bad[0, 0]])} has two different labels; expected one"
                )

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
        """Alias of ``features``."""
        return self.features

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of the features of one node."""
        return tuple(self.features.shape[1:])

    def to(self, device: str | torch.device) -> GraphData:
        """Return the same data on ``device``."""
        return replace(
            self,
            features=self.features.to(device),
            graph=self.graph.to(device),
            ids=self.ids.to(device),
            y=self.y.to(device),
        )

    def take(self, indices: Tensor) -> GraphData:
        """Return data with the samples at ``indices`` (int64 ``[M']``) on the same graph."""
        return replace(self, ids=self.ids[indices], y=self.y[indices])

    def batch(self, indices: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return the nodes ``[B]`` or pairs ``[B, 2]`` at ``indices`` ``[B]``, and their labels ``[B]``."""
        return self.ids.index_select(0, indices), self.y.index_select(0, indices)

    def content(self) -> list[object]:
        """Values that identify the data: name, size, and a hash of samples, labels and edges."""
        digest = hashlib.sha256()
        some = self.features[:: max(1, self.graph.n_nodes // 64)].contiguous()
        for tensor in (self.ids, self.y, self.graph.edge_index, some):
            digest.update(tensor.cpu().numpy().tobytes())
        return [self.name, len(self), list(self.features.shape), digest.hexdigest()]
