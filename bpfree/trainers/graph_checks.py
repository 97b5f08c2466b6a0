"""Checks before a run on a graph: validation samples are no training samples, no class is missing."""

from __future__ import annotations

import hashlib
import math
import warnings

import torch
from torch import Tensor

from bpfree._errors import BadValue
from bpfree.data import GraphData

#: Length of features below which the 1e-8 that is added to it is no longer negligible.
SMALL = 1e-6


def check_validation(train: GraphData, validation: GraphData) -> None:
    """Check validation data against the training data.

    Raises:
        BadValue: If their kinds differ, or the validation pairs are all edges or all no edges.

    Warns:
        UserWarning: If samples are in both, or validation edges are edges of the graph.
    """
    kinds = [(data.sample_shape, data.n_classes, data.ids.ndim) for data in (train, validation)]
    if kinds[0] != kinds[1]:
        raise BadValue(f"validation is {validation!r}: expected data like the training data {train!r}")
    pairs = validation.ids.ndim == 2
    if pairs and validation.y.min() == validation.y.max():
        raise BadValue(
            f"all {len(validation)} validation pairs have the label {int(validation.y[0])}: the area under "
            "the ROC needs edges (1) and pairs that are none (0)"
        )
    validation = validation.to(train.features.device)
    if _same_nodes(train, validation):
        n_shared = int(torch.isin(_keys(validation), _keys(train)).sum())
        if n_shared:
            warnings.warn(
                f"{n_shared} of {len(validation)} validation samples are training samples: early stopping "
                "and best weights depend on samples that were trained on; remove them from one of the two",
                stacklevel=3,
            )
    if pairs:
        edges = validation.graph.edge_index.sort(0).values
        edge_keys = edges[0] * validation.graph.n_nodes + edges[1]
        n_edges = int(torch.isin(_keys(validation)[validation.y == 1], edge_keys).sum())
        if n_edges:
            warnings.warn(
                f"{n_edges} of {int(validation.y.sum())} validation edges are edges of validation.graph: "
                "messages flow along the very edges that are predicted; remove them from that graph",
                stacklevel=3,
            )


def check_classes(train: GraphData) -> None:
    """Check that each class has a training sample.

    Warns:
        UserWarning: If one has none.
    """
    counts = torch.bincount(train.y, minlength=train.n_classes)
    if missing := (counts == 0).nonzero().flatten().tolist():
        warnings.warn(
            f"{train.name}: no training sample has the class {', '.join(map(str, missing[:10]))}, of "
            f"{train.n_classes} classes: it cannot be learned",
            stacklevel=3,
        )


def check_scale(data: GraphData) -> None:
    """Check that the length of each node's features is finite, and large against what is added to it.

    Raises:
        BadValue: If it overflows.

    Warns:
        UserWarning: If all features are too small.
    """
    longest = float(torch.linalg.vector_norm(data.features, dim=1).max())
    if longest == math.inf:
        raise BadValue(
            f"{data.name}: features of up to {float(data.features.abs().max()):.2g} are too large, as their "
            "squares overflow in float32: scale them"
        )
    if 0 < longest < SMALL:
        warnings.warn(
            f"{data.name}: the features of no node have a length above {longest:.2g}; layers that divide by "
            "this length add 1e-8 to it: scale the features",
            stacklevel=3,
        )


def digest(train: GraphData) -> str:
    """A digest of a training graph and its labels, independent of the order of edges and samples."""
    sha, n = hashlib.sha256(), train.graph.n_nodes
    order = train.ids.argsort()
    edges = train.graph.edge_index[0] * n + train.graph.edge_index[1]
    for tensor in (train.ids[order], train.y[order], edges.sort().values, train.features.contiguous()):
        sha.update(tensor.cpu().numpy().tobytes())
    return sha.hexdigest()


def _same_nodes(a: GraphData, b: GraphData) -> bool:
    x, other = a.features, b.features
    if x is not other and (x.shape != other.shape or not torch.equal(x, other)):
        return False
    # In a split by edges, the graph of a later part may have more edges.
    return a.ids.ndim == 2 or a.graph.equals(b.graph)


def _keys(data: GraphData) -> Tensor:
    """A number for each node, or for each unordered pair."""
    if data.ids.ndim == 1:
        return data.ids
    ends: Tensor = data.ids.sort(1).values
    return ends[:, 0] * data.graph.n_nodes + ends[:, 1]
