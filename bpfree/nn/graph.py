"""Layers of graph networks, split into a fixed part (the aggregation) and a learned part.

The weights are those of torch-geometric's ``GCNConv``, ``SAGEConv`` and ``GATConv``, and the outputs are the
same.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree.graph import Graph, Nodes
from bpfree.kept import Store
from bpfree.nn.attention import GATLayer, attend
from bpfree.sparse import Columns, Propagated, SparseMatrix, times

GraphKind = Literal["gcn", "sage", "gat"]


class GCNLayer(Protocol):
    """Attributes of torch-geometric's ``GCNConv`` that are used here."""

    lin: nn.Linear
    bias: Tensor


class SAGELayer(Protocol):
    """Attributes of torch-geometric's ``SAGEConv`` that are used here."""

    lin_l: nn.Linear
    lin_r: nn.Linear


class GNN(nn.Module):
    """A graph network whose layers are created by a trainer, which determines their input widths.

    After `make_layers` it is an ordinary module of torch-geometric's convolutions.

    Args:
        kind: ``"gcn"``, ``"sage"`` (mean aggregation) or ``"gat"``.
        hidden: Output width of each hidden layer.
        heads: Number of heads of ``"gat"``; each has hidden / heads values, and they are concatenated.

    Raises:
        BadValue: If the kind is unknown, or a width is below 1 or not divisible by the number of heads.
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

    def make_layers(self, inputs: Sequence[int], outputs: Sequence[int]) -> list[Any]:
        """Create new layers with these input and output widths; return torch-geometric's modules."""
        layers = (self._layer(a, b) for a, b in zip(inputs, outputs, strict=True))
        self.convs = nn.ModuleList(layers)
        return list(self.convs)

    def _layer(self, width_in: int, width_out: int) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch-geometric's import emits torch.jit's deprecation warning
            from torch_geometric.nn import GATConv, GCNConv, SAGEConv
        if self.kind == "gcn":
            layer = GCNConv(width_in, width_out)
        elif self.kind == "sage":
            layer = SAGEConv(width_in, width_out)
        else:
            heads = self.heads if width_out % self.heads == 0 else 1
            layer = GATConv(width_in, width_out // heads, heads=heads)
        for weight in (p for p in layer.parameters() if p.dim() == 2):
            # Products with sparse matrices use the transposed weight; with these strides it is not copied.
            weight.data = weight.data.T.contiguous().T
        return layer

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Features ``[n, F]`` to outputs ``[n, d]``: the convolutions in order, with ReLU between them."""
        for number, conv in enumerate(self.convs):
            x = conv(x.relu() if number else x, edge_index)
        return x


class Aggregate(nn.Module):
    """The fixed part of a GCN or SAGE layer: node states to the inputs of the learned part.

    ``"gcn"``: ``A norm(h)`` with A of `Graph.operator`. ``"sage"``: ``[mean norm(h), norm(h)]``, with the
    mean over the neighbors. For sparse states, the result is a lazy product, unless the rows of some nodes
    are used repeatedly.

    Args:
        kind: ``"gcn"`` or ``"sage"``.
        normalize: Whether rows are scaled to length 1 first.
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
        """States ``[n, d]`` to ``[n, d]`` for ``"gcn"``, or ``[n, 2 d]`` for ``"sage"``."""
        if self.kind == "gcn":
            return propagated(graph.operator("gcn"), states, store)
        mean = graph.operator("mean")

        def both(at: slice) -> Tensor:
            return torch.cat([mean.rows(at) @ states, states[at]], 1)[None]

        return store.filled(len(states), both)[0]


class Hops(nn.Module):
    """Hop features ``[x, A x, ..., A^k x]``, with A of a GCN (SIGN, Frasca et al., arXiv 2004.11198).

    Args:
        hops: Number of hops k.
        normalize: Whether rows of x are scaled to length 1 first.
    """

    def __init__(self, hops: int, normalize: bool = True) -> None:
        super().__init__()
        self.hops, self.normalize = hops, normalize

    def forward(self, nodes: Nodes) -> Columns:
        return nodes.rows(
            f"hops {self.hops}", lambda states, graph: self.make(states, graph, nodes.store), self.normalize
        )

    def make(self, states: Tensor, graph: Graph, store: Store) -> Tensor:
        """Features ``[n, F]`` to ``[n, (k + 1) F]``."""
        powers = [states]
        for _ in range(self.hops):
            powers.append(propagated(graph.operator("gcn"), powers[-1], store))
        return store.filled(len(states), lambda at: torch.cat([power[at] for power in powers], 1)[None])[0]


def propagated(operator: SparseMatrix, h: Tensor, store: Store) -> Tensor:
    """Return ``operator @ h``, saved in ``store``."""
    return store.filled(len(h), lambda at: (operator.rows(at) @ h)[None])[0]


class GCNPart(nn.Module):
    """The learned part of a ``GCNConv`` and a ReLU: ``[rows, d]`` to ``[rows, H]``."""

    def __init__(self, conv: GCNLayer) -> None:
        super().__init__()
        self.lin, self.bias = conv.lin, conv.bias

    def forward(self, rows: Columns) -> Tensor:
        return affine(rows, self.bias, self.lin.weight).relu_()


class SAGEPart(nn.Module):
    """The learned part of a ``SAGEConv`` and a ReLU: ``[rows, 2 d]`` to ``[rows, H]``."""

    def __init__(self, conv: SAGELayer) -> None:
        super().__init__()
        self.lin_l, self.lin_r = conv.lin_l, conv.lin_r

    def forward(self, rows: Columns) -> Tensor:
        return affine(rows, self.lin_l.bias, self.lin_l.weight, self.lin_r.weight).relu_()


def affine(rows: Columns, bias: Tensor, *weights: Tensor) -> Tensor:
    """Apply the weights and bias of a GCN or SAGE layer to an output of `Aggregate`: ``[rows, H]``."""
    if isinstance(rows, Tensor):
        return F.linear(rows, torch.cat(weights, 1) if len(weights) > 1 else weights[0], bias)
    output: Tensor = times(rows, *weights) + bias
    return output


class Attention(nn.Module):
    """A ``GATConv`` and a ReLU, ``Nodes`` to ``[views * m, H]``. The aggregation is learned as well.

    Args:
        conv: torch-geometric's layer.
        normalize: Whether rows are scaled to length 1 first.
    """

    def __init__(self, conv: GATLayer, normalize: bool = True) -> None:
        super().__init__()
        self.conv, self.normalize = conv, normalize

    def forward(self, nodes: Nodes) -> Tensor:
        return attend(self.conv, features(nodes, self.normalize), nodes.edges()).relu()


def features(nodes: Nodes, normalize: bool) -> Columns:
    """Return the states of all nodes, ``[views * n, d]``, as a sparse matrix if they are sparse."""
    return nodes.wanting(None, keeps=True).rows("features", lambda states, _: states, normalize)


class EndToEndGNN(nn.Module):
    """All layers of a graph network, ``Nodes`` to ``[m, C]``, trained by one global backward pass.

    ReLU is between the layers, and dropout before each layer. Without dropout, the aggregation of dense input
    features is computed once. If the same target nodes are used repeatedly, the last layer computes their
    rows only.

    Args:
        net: The network, with its layers.
        normalize: Whether rows of the features are scaled to length 1 first.
        dropout: Dropout probability of the inputs of each layer.
    """

    def __init__(self, net: GNN, normalize: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.net, self.normalize, self.dropout = net, normalize, dropout

    def forward(self, nodes: Nodes) -> Tensor:
        x: Any = features(nodes, self.normalize)
        some = nodes.wanted is not None and nodes.keeps and nodes.memo is not None
        for number, conv in enumerate(self.net.convs):
            layer_nodes = nodes if some and conv is self.net.convs[-1] else nodes.wanting(None, keeps=True)
            if number == 0 and self.net.kind != "gat" and self._is_constant(x):
                x = self._aggregate_first(conv, layer_nodes)
            else:
                x = self._layer(conv, self._drop(x.relu() if number else x), layer_nodes)
        output: Tensor = x if some or nodes.wanted is None else x[nodes.wanted]
        return output

    def _aggregate_first(self, conv: Any, nodes: Nodes) -> Tensor:
        if self.net.kind == "gcn":
            return affine(Aggregate("gcn", self.normalize)(nodes), conv.bias, conv.lin.weight)
        rows = Aggregate("sage", self.normalize)(nodes)
        return affine(rows, conv.lin_l.bias, conv.lin_l.weight, conv.lin_r.weight)

    def _is_constant(self, x: Tensor | SparseMatrix) -> bool:
        """Return whether the features are dense (so is their aggregate) and the same in every call."""
        return isinstance(x, Tensor) and not (self.training and self.dropout)

    def _drop(self, x: Tensor | SparseMatrix) -> Tensor | SparseMatrix:
        rate, training = self.dropout, self.training
        if not (training and rate):
            return x
        return dropped(x, rate) if isinstance(x, Tensor) else x.with_values(dropped(x.value, rate))

    def _layer(self, conv: Any, x: Tensor | SparseMatrix, nodes: Nodes) -> Tensor:
        # The operators of the graph are computed once; torch-geometric would compute them in every step.
        if self.net.kind == "gcn":
            output: Tensor = nodes.operator("gcn") @ (x @ conv.lin.weight.T) + conv.bias
        elif self.net.kind == "sage":
            # mean(x W^T) = mean(x) W^T: the narrower of the two is propagated.
            if not isinstance(x, Tensor) or len(conv.lin_l.weight) < x.shape[1]:
                neighbors = nodes.operator("mean") @ (x @ conv.lin_l.weight.T)
            else:
                neighbors = nodes.operator("mean") @ x @ conv.lin_l.weight.T
            if nodes.wanted is not None:
                x = x[nodes.wanted] if isinstance(x, Tensor) else x.picked(nodes.wanted)
            output = neighbors + conv.lin_l.bias + x @ conv.lin_r.weight.T
        else:
            output = attend(conv, x, nodes.edges())
        return output


def dropped(x: Tensor, rate: float) -> Tensor:
    """Dropout with probability ``rate``.

    On a CPU, `torch.nn.functional.dropout` takes four times as long, because it samples by ``bernoulli_``.
    """
    return x * (torch.rand_like(x) >= rate).to(x.dtype).div_(1 - rate)


def learned_part(net: GNN, conv: Any, normalize: bool = True) -> tuple[nn.Module | None, nn.Module]:
    """Split ``conv``, a layer of ``net``, into a front (or None) and a learned part with its parameters."""
    if net.kind == "gcn":
        return Aggregate("gcn", normalize), GCNPart(conv)
    if net.kind == "sage":
        return Aggregate("sage", normalize), SAGEPart(conv)
    return None, Attention(conv, normalize)
