"""Graphs, and the operators that propagate states along their edges."""

from __future__ import annotations

from operator import index
from typing import Any

import torch
from torch import Tensor

from bpfree._errors import BadValue
from bpfree.graphs.sparse import Constant, SparseMatrix

#: Share of nonzero values below which a constant matrix is stored as a sparse one.
SPARSE_BELOW = 0.1


class Graph(Constant):
    """A directed graph; edges point from source to target, and messages flow along them.

    An undirected edge is given in both directions. An edge that is given several times counts as often, and
    a self-loop counts once in GCN and GAT layers, as in torch-geometric. Edges have no weights.

    Args:
        edge_index: Source and target of each edge, int64 ``[2, E]``, torch-geometric's layout. It must not
            be changed in place afterwards.
        n_nodes: Number of nodes n.

    Raises:
        BadValue: If ``edge_index`` is not such a tensor, or has a node number outside 0..n-1.
    """

    def __init__(self, edge_index: Tensor, n_nodes: int) -> None:
        n_nodes = positive("n_nodes", n_nodes)
        given: Any = edge_index
        if not isinstance(given, Tensor) or given.layout != torch.strided:
            kind = given.layout if isinstance(given, Tensor) else type(given).__name__
            raise BadValue(
                f"edge_index is a {kind}: expected a dense tensor, int64 [2, E], sources and targets; for a "
                "sparse adjacency matrix give adjacency.to_sparse_coo().coalesce().indices()"
            )
        if edge_index.dtype != torch.int64 or edge_index.ndim != 2 or len(edge_index) != 2:
            transposed = edge_index.ndim == 2 and edge_index.shape[1] == 2 and len(edge_index) != 2
            raise BadValue(
                f"edge_index is {edge_index.dtype} {list(edge_index.shape)}: expected int64 [2, E], "
                f"sources and targets; convert it with edge_index{'.T' * transposed}.long()"
            )
        if edge_index.numel() and not 0 <= int(edge_index.min()) <= int(edge_index.max()) < n_nodes:
            raise BadValue(
                f"edge_index has node numbers {int(edge_index.min())}..{int(edge_index.max())}; "
                f"expected 0..{n_nodes - 1}"
            )
        self.edge_index, self.n_nodes = edge_index, n_nodes
        self._version = VersionCheck(edge_index, "edge_index")
        self._operators: dict[str, SparseMatrix] = {}
        self._with_self_loops: tuple[Tensor, Tensor] | None = None

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
        """A graph of ``n_nodes`` nodes with these edges and the edges ``more [2, E']``."""
        return Graph(torch.cat([self.edge_index, more.to(self.edge_index)], 1), n_nodes)

    def disjoint_union(self, other: Graph) -> Graph:
        """This graph and ``other``, without an edge between the two; the nodes of ``other`` come last."""
        return self.with_edges(other.edge_index + self.n_nodes, self.n_nodes + other.n_nodes)

    def equals(self, other: Graph) -> bool:
        """Whether ``other``, on the same device, has as many nodes and the same edges, in any order."""
        self._version.check(self.edge_index)
        if self is other or self.edge_index is other.edge_index:
            return self.n_nodes == other.n_nodes
        if (self.n_nodes, self.n_edges) != (other.n_nodes, other.n_edges):
            return False
        edges, other_edges = (g.edge_index[0] * g.n_nodes + g.edge_index[1] for g in (self, other))
        return torch.equal(edges, other_edges) or torch.equal(edges.sort().values, other_edges.sort().values)

    def with_self_loops(self) -> tuple[Tensor, Tensor]:
        """Sources and targets ``[E']`` of the edges, with one self-loop at each node; cached."""
        self._version.check(self.edge_index)
        if self._with_self_loops is None:
            source, target = self.edge_index
            loops = torch.arange(self.n_nodes, device=source.device)
            no_loop = source != target
            self._with_self_loops = (torch.cat([source[no_loop], loops]), torch.cat([target[no_loop], loops]))
        return self._with_self_loops

    def operator(self, kind: str) -> SparseMatrix:
        """The matrix ``[n, n]`` that propagates states along the edges; cached.

        ``gcn``: ``D^-1/2 (A + I) D^-1/2`` with D the in-degrees, self-loop included (Kipf and Welling, arXiv
        1609.02907); ``mean``: the mean over the sources of incoming edges, 0 without any.

        Raises:
            BadValue: If ``kind`` is unknown, or ``edge_index`` was changed in place.
        """
        self._version.check(self.edge_index)
        if kind not in self._operators:
            source, target = self.edge_index
            if kind == "gcn":
                source, target = self.with_self_loops()
                degree = torch.bincount(target, minlength=self.n_nodes).float().rsqrt()
                value = degree[source] * degree[target]
            elif kind == "mean":
                value = torch.bincount(target, minlength=self.n_nodes).float().reciprocal()[target]
            else:
                raise BadValue(f"operator {kind!r}: unknown; allowed: gcn, mean")
            self._operators[kind] = SparseMatrix(target, source, value, (self.n_nodes, self.n_nodes))
        return self._operators[kind]


class VersionCheck:
    """Detects in-place changes of a tensor by its version counter, which inference tensors do not have.

    Args:
        tensor: The tensor. A copy of it is not checked.
        name: Its name in messages.
    """

    def __init__(self, tensor: Tensor, name: str) -> None:
        self.name, self._id = name, id(tensor)
        self._version = 0 if tensor.is_inference() else tensor._version

    def check(self, tensor: Tensor) -> None:
        """Check ``tensor``.

        Raises:
            BadValue: If it was changed.
        """
        if self._id != id(tensor) or tensor.is_inference():
            return
        if self._version != tensor._version:
            raise BadValue(
                f"{self.name} was changed in place after it was given, so that results computed from it are "
                "outdated; leave it unchanged, and give a changed copy"
            )


def positive(name: str, value: Any) -> int:
    """``value`` as an integer.

    Raises:
        BadValue: If it is not an integer, or less than 1; the message contains ``name``.
    """
    try:
        number = index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise BadValue(f"{name} = {value!r}: expected an integer of at least 1")
    return number


def mostly_zero(values: Tensor) -> bool:
    """Whether a product with ``values`` as a sparse matrix is cheaper than with the dense tensor."""
    return bool(values.count_nonzero() < SPARSE_BELOW * values.numel())


def unit_rows(x: Tensor) -> Tensor:
    """Each row divided by its Euclidean length plus 1e-8; ``[n, d]``."""
    return x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + 1e-8)  # type: ignore[no-any-return]
