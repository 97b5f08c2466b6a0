"""Graphs, the sparse matrices that propagate over them, and the states of their nodes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from bpfree._errors import BadValue
from bpfree.kept import Store

#: Share of values other than zero below which constant rows are kept as a sparse matrix.
SPARSE_BELOW = 0.1


class _Constant:
    """Something that never changes: a copy is the thing itself."""

    def __deepcopy__(self, _: dict[int, Any]) -> Self:
        return self


class SparseMatrix(_Constant):
    """A constant sparse matrix ``[n, m]`` that multiplies dense ones, gradients included.

    Its transpose, which the backward pass needs, is made once.

    Args:
        row: Row of each entry, int64 ``[E]``.
        column: Column of each entry, ``[E]``.
        value: The entries, ``[E]``; no two at one place.
        shape: ``(n, m)``.
    """

    def __init__(self, row: Tensor, column: Tensor, value: Tensor, shape: tuple[int, int]) -> None:
        order = torch.argsort(row * shape[1] + column)
        self.shape, self.value = shape, value[order]
        self._row, self._column = row[order], column[order]
        self._pointers = _pointers(self._row, shape[0])
        self._turned: tuple[Tensor, Tensor, Tensor] | None = None
        self._forward = _csr(self._pointers, self._column, self.value, shape)
        self._backward: Tensor | None = None

    @classmethod
    def of(cls, dense: Tensor) -> SparseMatrix:
        """The matrix ``dense [n, m]``."""
        row, column = dense.nonzero(as_tuple=True)
        return cls(row, column, dense[row, column], (dense.shape[0], dense.shape[1]))

    def with_values(self, value: Tensor) -> SparseMatrix:
        """A matrix with other entries ``[E]`` in the places of ``value``."""
        found = copy.copy(self)
        found.value, found._backward = value, None
        found._forward = _csr(self._pointers, self._column, value, self.shape)
        return found

    def rows(self, part: slice) -> SparseMatrix:
        """Some of the rows, ``[rows, m]``."""
        start, stop, _ = part.indices(self.shape[0])
        if stop - start == self.shape[0]:
            return self
        first, last = self._pointers[start].item(), self._pointers[stop].item()
        found = copy.copy(self)
        found.shape, found.value = (stop - start, self.shape[1]), self.value[first:last]
        found._row, found._column = self._row[first:last] - start, self._column[first:last]
        found._pointers = self._pointers[start : stop + 1] - first
        found._turned = found._backward = None
        found._forward = _csr(found._pointers, found._column, found.value, found.shape)
        return found

    @property
    def transposed(self) -> Tensor:
        """The transpose, as a CSR tensor."""
        if self._backward is None:
            if self._turned is None:
                order = torch.argsort(self._column * self.shape[0] + self._row)
                pointers = _pointers(self._column[order], self.shape[1])
                self._turned = (order, pointers, self._row[order])
            order, pointers, column = self._turned
            self._backward = _csr(pointers, column, self.value[order], self.shape[::-1])
        return self._backward

    def __matmul__(self, x: Tensor) -> Tensor:
        return _Product.apply(self, x)  # type: ignore[no-any-return]

    def dense(self) -> Tensor:
        """All values, ``[n, m]``."""
        return self._forward.to_dense()


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: SparseMatrix, x: Tensor) -> Tensor:
        ctx.matrix, ctx.dtype = matrix, x.dtype
        # There are no products of sparse matrices in half precision everywhere.
        with torch.autocast(x.device.type, enabled=False):
            return matrix._forward @ x.to(matrix.value.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        with torch.autocast(grad.device.type, enabled=False):
            found: Tensor = ctx.matrix.transposed @ grad.to(ctx.matrix.value.dtype).contiguous()
        return None, found.to(ctx.dtype)


def _pointers(row: Tensor, n: int) -> Tensor:
    counts = torch.bincount(row, minlength=n)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _csr(pointers: Tensor, column: Tensor, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its CSR tensors a beta
        return torch.sparse_csr_tensor(pointers, column, value, shape, check_invariants=False)


class Graph(_Constant):
    """A directed graph; edges point from source to target, and messages flow along them.

    Args:
        edge_index: Source and target of each edge, int64 ``[2, E]``, torch-geometric's layout.
        n_nodes: Number of nodes n.

    Raises:
        BadValue: If the edges name nodes that there are not.
    """

    def __init__(self, edge_index: Tensor, n_nodes: int) -> None:
        if edge_index.dtype != torch.int64 or edge_index.ndim != 2 or len(edge_index) != 2:
            raise BadValue(
                f"edge_index is {edge_index.dtype} {list(edge_index.shape)}: expected int64 [2, E], "
                "sources and targets"
            )
        if edge_index.numel() and not 0 <= int(edge_index.min()) <= int(edge_index.max()) < n_nodes:
            raise BadValue(
                f"edge_index names nodes {int(edge_index.min())}..{int(edge_index.max())}; "
                f"expected 0..{n_nodes - 1}"
            )
        self.edge_index, self.n_nodes = edge_index, n_nodes
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

    def with_loops(self) -> tuple[Tensor, Tensor]:
        """Sources and targets ``[E']`` of the edges, each node's own loop among them once; made once."""
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


@dataclass(frozen=True, eq=False)
class Ends:
    """Outputs for pairs of nodes, not multiplied out.

    Attributes:
        output: Of all nodes, ``[n, d]``.
        pairs: int64 ``[B, 2]``.
    """

    output: Tensor
    pairs: Tensor


def unit_rows(x: Tensor) -> Tensor:
    """Each row divided by its Euclidean length plus 1e-8; ``[n, d]``."""
    return x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + 1e-8)  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class Nodes(_Constant):
    """The states of all nodes of a graph, in one view or several, and the nodes that are asked about.

    What a front makes of states and graph is a constant of the two: it is kept here, so it is known by them
    and by nothing else, and goes with them.

    Attributes:
        states: ``[n, d]`` for each view; one for all views where they do not differ.
        graphs: For each view; one for all views where they do not differ.
        wanted: The nodes that are asked about, ``[m]``; None: all.
        keeps: Whether the rows of ``wanted`` will be asked for again: then they are kept as well.
        leads: Whether only the first view's states go up, for all views.
        pairs: Pairs of nodes that readouts are to judge, ``[B, 2]``; None: nodes.
        memo: What fronts have answered; None: nothing is kept.
        store: Where it is kept, but for sparse rows, and where states go that these are raised to.
    """

    states: tuple[Tensor, ...]
    graphs: tuple[Graph, ...]
    wanted: Tensor | None = None
    keeps: bool = False
    leads: bool = False
    pairs: Tensor | None = None
    memo: dict[Any, Any] | None = field(default_factory=dict)
    store: Store = field(default_factory=Store)

    @property
    def views(self) -> int:
        """Number of views."""
        return max(len(self.states), len(self.graphs))

    @property
    def n_nodes(self) -> int:
        """Number of nodes n."""
        return len(self.states[0])

    def view(self, number: int) -> tuple[Tensor, Graph]:
        """States ``[n, d]`` and graph of one view."""
        return self.states[number % len(self.states)], self.graphs[number % len(self.graphs)]

    def wanting(self, wanted: Tensor | None, keeps: bool = False, pairs: Tensor | None = None) -> Nodes:
        """The same states, with other nodes or pairs asked about."""
        return replace(self, wanted=wanted, keeps=keeps, pairs=pairs)

    def whole(self) -> Nodes:
        """What goes up must be known of: all nodes, in those views whose states go up."""
        if self.leads:
            return replace(self, graphs=self.graphs[:1], wanted=None, memo=None)
        return self.wanting(None)

    def up(self, output: Tensor) -> Nodes:
        """The states ``output [views * n, d']`` in place of these, on the same graphs."""
        states = output.detach().view(-1, self.n_nodes, output.shape[1]).unbind(0)
        kept: dict[Any, Any] | None = None if self.memo is None else {}
        return replace(self, states=states[:1] if self.leads else states, memo=kept)

    def rows(self, name: str, make: Callable[[Tensor, Graph], Tensor]) -> Tensor | SparseMatrix:
        """What ``make`` makes of states and graph for the nodes asked about, ``[views * m, d']``.

        Args:
            name: What ``make`` is known by: rows that were made under a name are not made again.
            make: Makes ``[n, d']`` of states ``[n, d]`` and a graph.
        """
        key = (name, None if self.wanted is None else id(self.wanted))
        keeps = self.memo is not None and self.keeps
        if keeps and self.memo is not None and key in self.memo:
            return self.memo[key][0]  # type: ignore[no-any-return]
        found: Tensor | SparseMatrix = self._picked(
            [self._whole(name, make, number) for number in range(self.views)],
            self.store if keeps else Store(),
        )
        assert isinstance(found, Tensor)
        if self.keeps and found.count_nonzero() < SPARSE_BELOW * found.numel():
            found = SparseMatrix.of(found)
        if keeps and self.memo is not None:
            self.memo[key] = (found, self.wanted)  # the key is an address: what stands there must stay
        return found

    def edges(self) -> tuple[Tensor, Tensor, Tensor]:
        """Edges and own loops into the nodes asked about, all views side by side as one graph.

        Returns:
            Sources ``[E']``, counted on through the views; targets as numbers of rows, ``[E']``; and the
            source that each row is itself, ``[views * m]``.
        """
        key = ("edges", None if self.wanted is None else id(self.wanted))
        keeps = self.memo is not None and (self.keeps or self.wanted is None)
        if keeps and self.memo is not None and key in self.memo:
            return self.memo[key][0]  # type: ignore[no-any-return]
        n = self.n_nodes
        asked = torch.arange(n, device=self.states[0].device) if self.wanted is None else self.wanted
        sources, targets = [], []
        for number in range(self.views):
            source, target = self.view(number)[1].with_loops()
            if self.wanted is not None:
                place = torch.full((n,), -1, device=target.device)
                place[asked] = torch.arange(len(asked), device=target.device)
                into = place[target] >= 0
                source, target = source[into], place[target[into]]
            sources.append(source + number * n)
            targets.append(target + number * len(asked))
        own = torch.cat([asked + number * n for number in range(self.views)])
        found = (torch.cat(sources), torch.cat(targets), own)
        if keeps and self.memo is not None:
            self.memo[key] = (found, self.wanted)
        return found

    def _picked(self, parts: list[Tensor], store: Store) -> Tensor:
        """Of each view, the rows that are asked about."""
        if self.wanted is None:
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        at = self.wanted
        kept = store.filled(len(at), lambda part: torch.stack([p.index_select(0, at[part]) for p in parts]))
        return kept.flatten(0, 1)

    def _whole(self, name: str, make: Callable[[Tensor, Graph], Tensor], number: int) -> Tensor:
        """All rows of one view; kept unless several views would be and their wanted rows are kept anyway."""
        key = (name, "view", number)
        if self.memo is not None and key in self.memo:
            return self.memo[key]  # type: ignore[no-any-return]
        found = make(*self.view(number))
        if self.memo is not None and not (self.keeps and self.views > 1):
            self.memo[key] = found
        return found
