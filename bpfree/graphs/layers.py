"""Layers of graph networks, split into a fixed part (the aggregation) and a learned part.

The weights are those of torch-geometric's `GCNConv`, `SAGEConv` and `GATConv`, and the outputs are the same;
tests compare them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree._feature_store import Store
from bpfree._renamed import warn_renamed
from bpfree.graphs.attention import Conv, attend
from bpfree.graphs.graph import Graph
from bpfree.graphs.matrices import Matrix, Propagated, linear
from bpfree.graphs.nodes import NodeQuery, Nodes
from bpfree.graphs.sparse import SparseMatrix

GraphKind = Literal["gcn", "sage", "gat"]


class GNN(nn.Module):
    """The shape of a graph network. A trainer chooses the widths of its layers, and calls `make_layers`.

    Afterwards it is an ordinary module of torch-geometric's convolutions.

    Args:
        kind: ``gcn``, ``sage`` (mean) or ``gat``.
        hidden: Width of the output of each hidden layer.
        heads: Heads of ``gat``, whose outputs are concatenated; each has hidden / heads values.

    Raises:
        BadValue: If the kind is unknown, a width is not positive, or a width is not divisible by ``heads``.
    """

    def __init__(self, kind: GraphKind, hidden: Sequence[int], heads: int = 4) -> None:
        super().__init__()
        if kind not in get_args(GraphKind):
            raise BadValue(f"kind = {kind!r}: expected one of {', '.join(get_args(GraphKind))}")
        if not hidden or min(hidden) < 1:
            raise BadValue(f"hidden = {list(hidden)}: expected at least one width, each of at least 1")
        if kind == "gat" and any(width % heads for width in hidden):
            raise BadValue(f"heads = {heads}: must divide every width of hidden = {list(hidden)}")
        self.kind, self.hidden, self.heads = kind, list(hidden), heads
        self.convs = nn.ModuleList()

    def make_layers(self, inputs: Sequence[int], outputs: Sequence[int]) -> list[Conv]:
        """Create new layers with these widths of input and output; returns torch-geometric's modules."""
        self.convs = nn.ModuleList(self._layer(a, b) for a, b in zip(inputs, outputs, strict=True))
        return list(self.convs)

    def grow(self, inputs: Sequence[int], outputs: Sequence[int]) -> list[Conv]:
        """The old name of `make_layers`."""
        warn_renamed("GNN.grow", "GNN.make_layers")
        return self.make_layers(inputs, outputs)

    def _layer(self, width_in: int, width_out: int) -> Conv:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit's deprecation, at torch-geometric's import
            from torch_geometric.nn import GATConv, GCNConv, SAGEConv
        if self.kind == "gcn":
            conv = GCNConv(width_in, width_out)
        elif self.kind == "sage":
            conv = SAGEConv(width_in, width_out)
        else:
            heads = self.heads if width_out % self.heads == 0 else 1
            conv = GATConv(width_in, width_out // heads, heads=heads)
        for weight in (p for p in conv.parameters() if p.dim() == 2):
            # Products with sparse matrices read and return transposed weights: stored so, none is copied.
            weight.data = weight.data.T.contiguous().T
        return conv

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """``[n, d]`` of features ``[n, F]``: the convolutions one after another, ReLU between them."""
        for number, conv in enumerate(self.convs):
            x = conv(x.relu() if number else x, edge_index)
        return x


class Aggregate(nn.Module):
    """The fixed part of a GCN or SAGE layer: from states to the input of the learned part.

    ``gcn``: ``A norm(h)``, with A of `Graph.operator`; ``sage``: the mean over neighbors and the node's own
    state, ``[mean norm(h), norm(h)]``. For sparse states it is not multiplied out, except where the rows of
    some nodes are used repeatedly.

    Args:
        kind: Which of the two.
        normalize: Whether rows are divided by their length first.
    """

    def __init__(self, kind: Literal["gcn", "sage"], normalize: bool = True) -> None:
        super().__init__()
        self.kind, self.normalize = kind, normalize

    def forward(self, nodes: Nodes) -> Matrix:
        states, target_nodes = nodes.states, nodes.query.target_nodes
        if states.sparse and (target_nodes is None or not nodes.cache.enabled):
            kind = "gcn" if self.kind == "gcn" else "mean"
            operators = [states.graph(variant).operator(kind) for variant in range(states.n_variants)]
            x = nodes.dense_states(self.normalize)
            return Propagated(x, operators, concat_states=self.kind == "sage", target_nodes=target_nodes)
        store = nodes.cache.store
        return nodes.compute(
            self.kind, lambda states, graph: self.aggregate(states, graph, store), self.normalize
        )

    def aggregate(self, states: Tensor, graph: Graph, store: Store) -> Tensor:
        """``[n, d]``, or ``[n, 2 d]`` for ``sage``, of states ``[n, d]``."""
        if self.kind == "gcn":
            return propagate(graph.operator("gcn"), states, store)
        mean = graph.operator("mean")

        def rows(part: slice) -> Tensor:
            return torch.cat([mean.slice_rows(part) @ states, states[part]], 1)[None]

        return store.filled(len(states), rows)[0]


class Hops(nn.Module):
    """Hop features ``[x, A x, ..., A^k x]``, with A of the GCN (SIGN, Frasca et al., arXiv 2004.11198).

    Args:
        hops: k.
        normalize: Whether rows of x are divided by their length first.
    """

    def __init__(self, hops: int, normalize: bool = True) -> None:
        super().__init__()
        self.hops, self.normalize = hops, normalize

    def forward(self, nodes: Nodes) -> Matrix:
        store = nodes.cache.store
        return nodes.compute(
            f"hops {self.hops}", lambda states, graph: self.aggregate(states, graph, store), self.normalize
        )

    def aggregate(self, states: Tensor, graph: Graph, store: Store) -> Tensor:
        """``[n, (k + 1) F]`` of features ``[n, F]``."""
        hops = [states]
        for _ in range(self.hops):
            hops.append(propagate(graph.operator("gcn"), hops[-1], store))
        return store.filled(len(states), lambda part: torch.cat([hop[part] for hop in hops], 1)[None])[0]


def propagate(operator: SparseMatrix, h: Tensor, store: Store) -> Tensor:
    """``operator @ h``, in a tensor of ``store``."""
    return store.filled(len(h), lambda part: (operator.slice_rows(part) @ h)[None])[0]


class GCNPart(nn.Module):
    """The learned part of a `GCNConv`: ``[rows, d] -> [rows, H]``, with ReLU."""

    def __init__(self, conv: Conv) -> None:
        super().__init__()
        self.lin, self.bias = conv.lin, conv.bias

    def forward(self, rows: Matrix) -> Tensor:
        if isinstance(rows, Tensor):
            return F.linear(rows, self.lin.weight, self.bias).relu_()
        return affine(self, rows).relu_()


class SAGEPart(nn.Module):
    """The learned part of a `SAGEConv`: ``[rows, 2 d] -> [rows, H]``, with ReLU."""

    def __init__(self, conv: Conv) -> None:
        super().__init__()
        self.lin_l, self.lin_r = conv.lin_l, conv.lin_r

    def forward(self, rows: Matrix) -> Tensor:
        return affine(self, rows).relu_()


def affine(layer: Conv, rows: Matrix) -> Tensor:
    """The output ``[rows, H]`` of a GCN or SAGE layer's weights for the output of `Aggregate`."""
    sage = hasattr(layer, "lin_l")
    weights = (layer.lin_l.weight, layer.lin_r.weight) if sage else (layer.lin.weight,)
    bias = layer.lin_l.bias if sage else layer.bias
    if isinstance(rows, Tensor):
        return F.linear(rows, torch.cat(weights, 1) if sage else weights[0], bias)
    result: Tensor = linear(rows, *weights) + bias
    return result


class Attention(nn.Module):
    """A `GATConv` with ReLU, ``Nodes -> [variants * m, H]``: its aggregation is learned, so it has no front.

    Args:
        conv: torch-geometric's layer.
        normalize: Whether rows are divided by their length first.
    """

    def __init__(self, conv: Conv, normalize: bool = True) -> None:
        super().__init__()
        self.conv, self.normalize = conv, normalize

    def forward(self, nodes: Nodes) -> Tensor:
        return attend(self.conv, all_rows(nodes, self.normalize), nodes.edges()).relu()


def all_rows(nodes: Nodes, normalize: bool) -> Matrix:
    """The states of all nodes, ``[variants * n, d]``, cached; sparse ones as a sparse matrix."""
    every = nodes.with_query(NodeQuery(repeated=True))
    return every.compute("features", lambda states, _: states, normalize)


class EndToEndGNN(nn.Module):
    """All layers of a graph network, ``Nodes -> [m, C]``, for a global backward pass.

    ReLU between the layers, dropout before each, none after the last. The aggregate of dense features is
    computed once, if no dropout is applied to them. The last layer computes the rows of the target nodes
    alone, if these are used repeatedly.

    Args:
        net: The network, with layers.
        normalize: Whether the features' rows are divided by their length first.
        dropout: Share of each layer's inputs that training drops.
    """

    def __init__(self, net: GNN, normalize: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.net, self.normalize, self.dropout = net, normalize, dropout

    def forward(self, nodes: Nodes) -> Tensor:
        x: Any = all_rows(nodes, self.normalize)
        query = nodes.query
        target_nodes = query.target_nodes
        targets_only = target_nodes is not None and query.repeated and nodes.cache.enabled
        every = nodes.with_query(NodeQuery(repeated=True))
        for number, conv in enumerate(self.net.convs):
            inputs = nodes if targets_only and conv is self.net.convs[-1] else every
            if number == 0 and self.net.kind != "gat" and self._is_constant(x):
                x = affine(conv, Aggregate(self.net.kind, self.normalize)(inputs))
            else:
                x = self._layer(conv, self._dropped(x.relu() if number else x), inputs)
        result: Tensor = x if targets_only or target_nodes is None else x[target_nodes]
        return result

    def _is_constant(self, x: Tensor | SparseMatrix) -> bool:
        """Whether features are the same in every step, and dense, so that their aggregate is no larger."""
        return isinstance(x, Tensor) and not (self.training and self.dropout)

    def _dropped(self, x: Tensor | SparseMatrix) -> Tensor | SparseMatrix:
        rate, training = self.dropout, self.training
        if not (training and rate):
            return x
        return dropout(x, rate) if isinstance(x, Tensor) else x.with_values(dropout(x.value, rate))

    def _layer(self, conv: Conv, x: Tensor | SparseMatrix, nodes: Nodes) -> Tensor:
        # The graph's operators are cached; torch-geometric would compute them at every step.
        if self.net.kind == "gcn":
            result: Tensor = nodes.operator("gcn") @ (x @ conv.lin.weight.T) + conv.bias
            return result
        if self.net.kind == "sage":
            # The mean of products is the product of means: the narrower of the two is propagated.
            if not isinstance(x, Tensor) or len(conv.lin_l.weight) < x.shape[1]:
                neighbors = nodes.operator("mean") @ (x @ conv.lin_l.weight.T)
            else:
                neighbors = nodes.operator("mean") @ x @ conv.lin_l.weight.T
            target_nodes = nodes.query.target_nodes
            if target_nodes is not None:
                x = x[target_nodes] if isinstance(x, Tensor) else x.select_rows(target_nodes)
            products: Tensor = neighbors + conv.lin_l.bias + x @ conv.lin_r.weight.T
            return products
        return attend(conv, x, nodes.edges())


def dropout(x: Tensor, rate: float) -> Tensor:
    """``x`` with a share ``rate`` of its values at 0, and the others divided by ``1 - rate``.

    On a CPU torch's dropout takes four times as long, because it draws by `bernoulli_`.
    """
    return x * (torch.rand_like(x) >= rate).to(x.dtype).div_(1 - rate)


def learned_part(net: GNN, conv: Conv, normalize: bool = True) -> tuple[nn.Module | None, nn.Module]:
    """The front and the body of one layer of ``net``, which share the layer's parameters."""
    if net.kind == "gcn":
        return Aggregate("gcn", normalize), GCNPart(conv)
    if net.kind == "sage":
        return Aggregate("sage", normalize), SAGEPart(conv)
    return None, Attention(conv, normalize)
