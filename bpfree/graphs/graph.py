"""Graphs, and the operators that propagate over them."""

from __future__ import annotations

from operator import index
from typing import Any

import torch
from torch import Tensor

from bpfree._errors import BadValue
from bpfree.graphs.sparse import Constant, SparseMatrix

#: Share of values other than zero below which constant rows are kept as a sparse matrix.
SPARSE_BELOW = 0.1


class Graph(Constant):
    """A directed graph; edges point from source to target, and messages flow along them.

    An undirected edge is given in both directions. An edge that is given several times counts as often, and
    an edge from a node to itself counts once in GCN and GAT layers, as in torch-geometric. Edges have no
    weights.

    Args:
        edge_index: Source and target of each edge, int64 ``[2, E]``, torch-geometric's layout. It must not
            be changed in place afterwards.
        n_nodes: Number of nodes n.

    Raises:
        BadValue: If the edges name nodes that there are not, or are not such a tensor.
    """

    def __init__(self, edge_index: Tensor, n_nodes: int) -> None:
        n_nodes = positive("n_nodes", n_nodes)
        given: Any = edge_index
        if not isinstance(given, Tensor) or given.layout != torch.strided:
            kind = given.layout if isinstance(given, Tensor) else type(given).__name__
            raise BadValue(
                f"edge_index is a {kind}: expected a dense tensor, int64 [2, E], sources and targets; of a "
                "sparse adjacency matrix take adjacency.to_sparse_coo().coalesce().indices()"
            )
        if edge_index.dtype != torch.int64 or edge_index.ndim != 2 or len(edge_index) != 2:
            turned = edge_index.ndim == 2 and edge_index.shape[1] == 2 and len(edge_index) != 2
            raise BadValue(
                f"edge_index is {edge_index.dtype} {list(edge_index.shape)}: expected int64 [2, E], "
                f"sources and targets; convert it with edge_index{'.T' * turned}.long()"
            )
        if edge_index.numel() and not 0 <= int(edge_index.min()) <= int(edge_index.max()) < n_nodes:
            raise BadValue(
                f"edge_index names nodes {int(edge_index.min())}..{int(edge_index.max())}; "
                f"expected 0..{n_nodes - 1}"
            )
        self.edge_index, self.n_nodes = edge_index, n_nodes
        self._unchanged = Unchanged(edge_index, "edge_index")
        self._operators: dict[str, SparseMatrix] = {}
        self._looped: tuple[Tensor, Tensor] | None = None

    @property
    def n_edges(self) -> int:
        """Number of directed edges."""
        return self.edge_index.shape[1]

    def to(self, device: str | torch.device) -> Graph:
        """The same graph on ``device``."""
        return (
            self
            if self.edge_index.device == torch.device(device)
            else Graph(self.edge_index.to(device), self.n_nodes)
        )

    def with_edges(self, more: Tensor, n_nodes: int) -> Graph:
        """A graph of ``n_nodes`` nodes that has the edges ``more [2, E']`` besides."""
        return Graph(torch.cat([self.edge_index, more.to(self.edge_index)], 1), n_nodes)

    def beside(self, other: Graph) -> Graph:
        """This graph and ``other``, whose nodes are counted on, without an edge between the two."""
        return self.with_edges(other.edge_index + self.n_nodes, self.n_nodes + other.n_nodes)

    def equals(self, other: Graph) -> bool:
        """Whether ``other``, on the same device, has as many nodes and the same edges, in any order."""
        self._unchanged.check(self.edge_index)
        if self is other or self.edge_index is other.edge_index:
            return self.n_nodes == other.n_nodes
        if (self.n_nodes, self.n_edges) != (other.n_nodes, other.n_edges):
            return False
        mine, theirs = (g.edge_index[0] * g.n_nodes + g.edge_index[1] for g in (self, other))
        return torch.equal(mine, theirs) or torch.equal(mine.sort().values, theirs.sort().values)

    def with_loops(self) -> tuple[Tensor, Tensor]:
        """Sources and targets ``[E']`` of the edges, each node's own loop among them once; made once."""
        self._unchanged.check(self.edge_index)
        if self._looped is None:
            source, target = self.edge_index
            loops = torch.arange(self.n_nodes, device=source.device)
            other = source != target
            self._looped = (torch.cat([source[other], loops]), torch.cat([target[other], loops]))
        return self._looped

    def operator(self, kind: str) -> SparseMatrix:
        """What propagates over the graph, ``[n, n]``, made once.

        ``gcn``: ``D^-1/2 (A + I) D^-1/2`` with D the in-degrees, own loop included (Kipf and Welling, arXiv
        1609.02907); ``mean``: the mean over the sources of the edges that come in, 0 without any.
        """
        self._unchanged.check(self.edge_index)
        if kind not in self._operators:
            source, target = self.edge_index
            if kind == "gcn":
                source, target = self.with_loops()
                degree = torch.bincount(target, minlength=self.n_nodes).float().rsqrt()
                value = degree[source] * degree[target]
            elif kind == "mean":
                value = torch.bincount(target, minlength=self.n_nodes).float().reciprocal()[target]
            else:
                raise BadValue(f"operator {kind!r}: unknown; allowed: gcn, mean")
            self._operators[kind] = SparseMatrix(target, source, value, (self.n_nodes, self.n_nodes))
        return self._operators[kind]


class Unchanged:
    """Notices that a tensor was changed in place, where torch counts it. A copy of the tensor is another.

    Args:
        tensor: Which.
        name: What it is called in messages.
    """

    def __init__(self, tensor: Tensor, name: str) -> None:
        self.name, self._id, self._version = name, id(tensor), self._of(tensor)

    @staticmethod
    def _of(tensor: Tensor) -> int:
        return 0 if tensor.is_inference() else tensor._version

    def check(self, tensor: Tensor) -> None:
        """Check ``tensor``.

        Raises:
            BadValue: If it was changed.
        """
        if self._id == id(tensor) and self._version != self._of(tensor):
            raise BadValue(
                f"{self.name} was changed in place after it was given: what was computed from it no longer "
                "holds; leave it as it was, and give a changed copy"
            )


def positive(name: str, value: Any) -> int:
    """``value`` as an integer.

    Raises:
        BadValue: naming it, if it is none, or less than 1.
    """
    try:
        found = index(value)
    except TypeError:
        found = 0
    if found < 1:
        raise BadValue(f"{name} = {value!r}: expected an integer of at least 1")
    return found


def mostly_zero(values: Tensor) -> bool:
    """Whether a sparse matrix of ``values`` costs less than they do."""
    return bool(values.count_nonzero() < SPARSE_BELOW * values.numel())


def unit_rows(x: Tensor) -> Tensor:
    """Each row divided by its Euclidean length plus 1e-8; ``[n, d]``."""
    return x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + 1e-8)  # type: ignore[no-any-return]
