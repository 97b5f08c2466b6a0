"""Labelled nodes, or pairs of nodes, of a graph that is held whole on one device."""

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
    """Some nodes of a graph, or pairs of them, with their labels. A sample is a node's number, or two.

    Attributes:
        features: Of all nodes, float ``[n, F]``, dense.
        graph: Along whose edges these samples may be told.
        ids: int64 ``[M]``, the nodes; or ``[M, 2]``, pairs of nodes. A boolean mask ``[n]`` may be given,
            which becomes the numbers of the nodes where it is true.
        y: int64 ``[M]``, classes of the nodes; 1 for a pair that is an edge, 0 for one that is none. With a
            mask, the labels ``[n]`` of all nodes may be given, of which those of other nodes may be anything.
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
        self._check_tensors()
        self._check_ids()
        self._check_labels()

    @classmethod
    def from_pyg(cls, data: Any, part: Literal["train", "val", "test"] = "train") -> GraphData:
        """The labelled nodes of one part of a ``torch_geometric.data.Data``.

        Args:
            data: With ``x``, ``edge_index``, ``y`` and the boolean masks of the parts.
            part: Which mask: ``train``, ``val`` or ``test``.

        Raises:
            BadValue: If one of these is missing, or something would be left out: weights of edges, or several
                splits in one mask.
        """
        name = f"{part}_mask"
        if missing := [key for key in ("x", "edge_index", "y", name) if getattr(data, key, None) is None]:
            raise BadValue(
                f"the {type(data).__name__} has no {', no '.join(missing)}: expected x, edge_index, y and "
                f"{name}; for other data call GraphData(x, Graph(edge_index, n_nodes), ids, y, n_classes)"
            )
        for key in ("edge_weight", "edge_attr"):
            if getattr(data, key, None) is not None:
                raise BadValue(
                    f"the {type(data).__name__} has {key}, which no trainer here uses: remove it first"
                )
        n_classes = int(data.y.max()) + 1
        return cls(data.x, Graph(data.edge_index, len(data.x)), getattr(data, name), data.y, n_classes, part)

    # ---- checks ----------------------------------------------------------------------------------------

    def _check_tensors(self) -> None:
        if not isinstance(self.graph, Graph):
            raise BadValue(
                f"{self.name}: graph is a {type(self.graph).__name__}; expected "
                "bpfree.graphs.graph.Graph(edge_index, n_nodes)"
            )
        n = self.graph.n_nodes
        for what in ("features", "ids", "y"):
            value = getattr(self, what)
            if not isinstance(value, Tensor):
                raise BadValue(f"{self.name}: {what} is a {type(value).__name__}; expected a tensor")
        x = self.features
        if x.layout != torch.strided:
            raise BadValue(
                f"{self.name}: features are {x.layout}; expected a dense tensor: features.to_dense()"
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
                    f"; of masks of several splits [{n}, S] take one, ids[:, 0]" if ids.ndim == 2 else ""
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
                f"{self.name}: ids are {ids.dtype} {list(ids.shape)}; expected int64 [M] or [M, 2], numbers "
                f"of nodes or pairs of them, or a boolean mask [{n}]"
            )
        if len(ids) > 2 * ids.ndim and int(ids.min()) >= 0 and int(ids.max()) <= 1:
            raise BadValue(
                f"{self.name}: ids {list(ids.shape)} are all 0 or 1, as in a mask, but as integers they are "
                "the nodes 0 and 1; give ids.bool()"
                + ("[:, 0], the mask of one split" if ids.ndim == 2 else "")
            )

    def _check_labels(self) -> None:
        n, ids, y = self.graph.n_nodes, self.ids, self.y
        positive(f"{self.name}: n_classes", self.n_classes)
        if ids.ndim == 2 and self.n_classes != 2:
            raise BadValue(
                f"{self.name}: n_classes is {self.n_classes}; expected 2 for pairs: an edge, or none"
            )
        if y.dtype != torch.int64 or y.shape != ids.shape[:1] or not len(y):
            of_all = "; of the labels of all nodes take y[ids]" if y.shape == (n,) and ids.ndim == 1 else ""
            raise BadValue(
                f"{self.name}: y is {y.dtype} {list(y.shape)}; expected int64 [{len(ids)}], "
                f"one label for each sample, and at least one sample{of_all}"
            )
        if unlabeled := int((y == -1).sum()):
            raise BadValue(
                f"{self.name}: y is -1, no label, for {unlabeled} of {len(y)} samples; leave them out: "
                "ids[y >= 0], y[y >= 0]"
            )
        for what, values, top in (("ids", ids, n), ("y", y, self.n_classes)):
            low, high = int(values.min()), int(values.max())
            if low < 0 or high >= top:
                raise BadValue(f"{self.name}: {what} has values {low}..{high}; expected 0..{top - 1}")
        if ids.ndim == 1:
            label = y.new_empty(n)
            label[ids] = y
            if (bad := (label[ids] != y).nonzero()).numel():
                raise BadValue(
                    f"{self.name}: node {int(ids[bad[0, 0]])} occurs with two labels; expected one"
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
