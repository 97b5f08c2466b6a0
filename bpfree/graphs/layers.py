"""Layers of graph networks, cut into what is fixed (the aggregation) and what is learned.

The weights are those of torch-geometric's `GCNConv`, `SAGEConv` and `GATConv`, and what is computed is the
same; tests compare them.
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
from bpfree.graphs.attention import attend
from bpfree.graphs.graph import Graph
from bpfree.graphs.nodes import Nodes
from bpfree.graphs.sparse import Columns, Propagated, SparseMatrix, times

GraphKind = Literal["gcn", "sage", "gat"]


class GNN(nn.Module):
    """The shape of a graph network; a trainer says the widths of its layers, and `grow` makes them.

    Afterwards it is an ordinary module of torch-geometric's convolutions.

    Args:
        kind: ``gcn``, ``sage`` (mean) or ``gat``.
        hidden: Width of the output of each hidden layer.
        heads: Heads of ``gat``, whose outputs are joined; each has hidden / heads values.

    Raises:
        BadValue: If the kind is unknown, a width is not positive, or the heads do not divide one.
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

    def grow(self, inputs: Sequence[int], outputs: Sequence[int]) -> list[Any]:
        """Make the layers anew, with these widths of input and output; returns torch-geometric's modules."""
        made = (self._layer(a, b) for a, b in zip(inputs, outputs, strict=True))
        self.convs = nn.ModuleList(made)
        return list(self.convs)

    def _layer(self, width_in: int, width_out: int) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit's deprecation, at torch-geometric's import
            from torch_geometric.nn import GATConv, GCNConv, SAGEConv
        if self.kind == "gcn":
            made = GCNConv(width_in, width_out)
        elif self.kind == "sage":
            made = SAGEConv(width_in, width_out)
        else:
            heads = self.heads if width_out % self.heads == 0 else 1
            made = GATConv(width_in, width_out // heads, heads=heads)
        for weight in (p for p in made.parameters() if p.dim() == 2):
            # Products with sparse matrices take and give weights turned; lying so, none need be copied.
            weight.data = weight.data.T.contiguous().T
        return made

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """``[n, d]`` of features ``[n, F]``: the convolutions one after another, ReLU between them."""
        for number, conv in enumerate(self.convs):
            x = conv(x.relu() if number else x, edge_index)
        return x


class Aggregate(nn.Module):
    """The fixed part of a GCN or SAGE layer: states to what the learned part multiplies.

    ``gcn``: ``A norm(h)``, with A of `Graph.operator`; ``sage``: the mean over neighbours beside the node's
    own, ``[mean norm(h), norm(h)]``. Of sparse states it is not written out, but where the rows of some nodes
    are asked for again and again.

    Args:
        kind: Which of the two.
        normalize: Whether rows get length 1 first.
    """

    def __init__(self, kind: Literal["gcn", "sage"], normalize: bool = True) -> None:
        super().__init__()
        self.kind, self.normalize = kind, normalize

    def forward(self, nodes: Nodes) -> Columns:
        if nodes.sparse and (nodes.wanted is None or nodes.memo is None):
            operator = "gcn" if self.kind == "gcn" else "mean"
            operators = [nodes.graph(view).operator(operator) for view in range(nodes.views)]
            return Propagated(nodes.columns(self.normalize), operators, self.kind == "sage", nodes.wanted)
        return nodes.rows(
            self.kind, lambda states, graph: self.make(states, graph, nodes.store), self.normalize
        )

    def make(self, states: Tensor, graph: Graph, store: Store) -> Tensor:
        """``[n, d]``, or ``[n, 2 d]`` for ``sage``, of states ``[n, d]``."""
        if self.kind == "gcn":
            return propagated(graph.operator("gcn"), states, store)
        mean = graph.operator("mean")

        def both(at: slice) -> Tensor:
            return torch.cat([mean.rows(at) @ states, states[at]], 1)[None]

        return store.filled(len(states), both)[0]


class Hops(nn.Module):
    """Hop features ``[x, A x, ..., A^k x]``, with A of the GCN (SIGN, Frasca et al., arXiv 2004.11198).

    Args:
        hops: k.
        normalize: Whether rows of x get length 1 first.
    """

    def __init__(self, hops: int, normalize: bool = True) -> None:
        super().__init__()
        self.hops, self.normalize = hops, normalize

    def forward(self, nodes: Nodes) -> Columns:
        return nodes.rows(
            f"hops {self.hops}", lambda states, graph: self.make(states, graph, nodes.store), self.normalize
        )

    def make(self, states: Tensor, graph: Graph, store: Store) -> Tensor:
        """``[n, (k + 1) F]`` of features ``[n, F]``."""
        found = [states]
        for _ in range(self.hops):
            found.append(propagated(graph.operator("gcn"), found[-1], store))
        return store.filled(len(states), lambda at: torch.cat([hop[at] for hop in found], 1)[None])[0]


def propagated(operator: SparseMatrix, h: Tensor, store: Store) -> Tensor:
    """``operator @ h``, kept in ``store``."""
    return store.filled(len(h), lambda at: (operator.rows(at) @ h)[None])[0]


class GCNPart(nn.Module):
    """The learned part of a `GCNConv`: ``[rows, d] -> [rows, H]``, with ReLU."""

    def __init__(self, conv: Any) -> None:
        super().__init__()
        self.lin, self.bias = conv.lin, conv.bias

    def forward(self, rows: Columns) -> Tensor:
        return affine(self, rows).relu_()


class SAGEPart(nn.Module):
    """The learned part of a `SAGEConv`: ``[rows, 2 d] -> [rows, H]``, with ReLU."""

    def __init__(self, conv: Any) -> None:
        super().__init__()
        self.lin_l, self.lin_r = conv.lin_l, conv.lin_r

    def forward(self, rows: Columns) -> Tensor:
        return affine(self, rows).relu_()


def affine(layer: Any, rows: Columns) -> Tensor:
    """What the weights of a GCN or SAGE layer make of what `Aggregate` answers, ``[rows, H]``."""
    sage = hasattr(layer, "lin_l")
    weights = (layer.lin_l.weight, layer.lin_r.weight) if sage else (layer.lin.weight,)
    bias = layer.lin_l.bias if sage else layer.bias
    if isinstance(rows, Tensor):
        return F.linear(rows, torch.cat(weights, 1) if sage else weights[0], bias)
    return times(rows, *weights) + bias  # type: ignore[no-any-return]


class Attention(nn.Module):
    """A `GATConv` with ReLU, ``Nodes -> [views * m, H]``: its aggregation is learned, so nothing is fixed.

    Args:
        conv: torch-geometric's layer.
        normalize: Whether rows get length 1 first.
    """

    def __init__(self, conv: Any, normalize: bool = True) -> None:
        super().__init__()
        self.conv, self.normalize = conv, normalize

    def forward(self, nodes: Nodes) -> Tensor:
        return attend(self.conv, features(nodes, self.normalize), nodes.edges()).relu()


def features(nodes: Nodes, normalize: bool) -> Columns:
    """The states of all nodes, ``[views * n, d]``, made once; sparse ones as a sparse matrix."""
    return nodes.wanting(None, keeps=True).rows("features", lambda states, _: states, normalize)


class WholeGNN(nn.Module):
    """All layers of a graph network, ``Nodes -> [m, C]``, for a global backward pass.

    ReLU between the layers, dropout in front of each, none behind the last. What the first layer aggregates
    of dense features is made once, where nothing of them is dropped; of the last layer the rows of samples
    alone are made, where they are asked for again.

    Args:
        net: The network, grown.
        normalize: Whether the features' rows get length 1 first.
        dropout: Share of each layer's inputs that training drops.
    """

    def __init__(self, net: GNN, normalize: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.net, self.normalize, self.dropout = net, normalize, dropout

    def forward(self, nodes: Nodes) -> Tensor:
        x: Any = features(nodes, self.normalize)
        some = nodes.wanted is not None and nodes.keeps and nodes.memo is not None
        for number, conv in enumerate(self.net.convs):
            at = nodes if some and conv is self.net.convs[-1] else nodes.wanting(None, keeps=True)
            if number == 0 and self.net.kind != "gat" and self._stays(x):
                x = affine(conv, Aggregate(self.net.kind, self.normalize)(at))
            else:
                x = self._layer(conv, self._dropped(x.relu() if number else x), at)
        return x if some or nodes.wanted is None else x[nodes.wanted]  # type: ignore[no-any-return]

    def _stays(self, x: Tensor | SparseMatrix) -> bool:
        """Whether features are dense, whose aggregate is no larger, and the same every time."""
        return isinstance(x, Tensor) and not (self.training and self.dropout)

    def _dropped(self, x: Tensor | SparseMatrix) -> Tensor | SparseMatrix:
        rate, training = self.dropout, self.training
        if not (training and rate):
            return x
        return dropped(x, rate) if isinstance(x, Tensor) else x.with_values(dropped(x.value, rate))

    def _layer(self, conv: Any, x: Tensor | SparseMatrix, nodes: Nodes) -> Tensor:
        # The operators of the graph are made once; torch-geometric would make them at every step.
        if self.net.kind == "gcn":
            return nodes.operator("gcn") @ (x @ conv.lin.weight.T) + conv.bias  # type: ignore[no-any-return]
        if self.net.kind == "sage":
            # The mean of products is the product of means: the narrower of the two is propagated.
            if not isinstance(x, Tensor) or len(conv.lin_l.weight) < x.shape[1]:
                neighbours = nodes.operator("mean") @ (x @ conv.lin_l.weight.T)
            else:
                neighbours = nodes.operator("mean") @ x @ conv.lin_l.weight.T
            if nodes.wanted is not None:
                x = x[nodes.wanted] if isinstance(x, Tensor) else x.picked(nodes.wanted)
            return neighbours + conv.lin_l.bias + x @ conv.lin_r.weight.T  # type: ignore[no-any-return]
        return attend(conv, x, nodes.edges())


def dropped(x: Tensor, rate: float) -> Tensor:
    """``x`` with a share ``rate`` of its values at 0, the others larger by as much.

    On a CPU torch's dropout takes four times as long: it draws by `bernoulli_`.
    """
    return x * (torch.rand_like(x) >= rate).to(x.dtype).div_(1 - rate)


def learned_part(net: GNN, conv: Any, normalize: bool = True) -> tuple[nn.Module | None, nn.Module]:
    """The front and the learned part of one layer of ``net``, which share the layer's parameters."""
    if net.kind == "gcn":
        return Aggregate("gcn", normalize), GCNPart(conv)
    if net.kind == "sage":
        return Aggregate("sage", normalize), SAGEPart(conv)
    return None, Attention(conv, normalize)
