"""Graphs, what propagates over them, and the states of their nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bpfree._errors import BadValue
from bpfree.kept import Store
from bpfree.sparse import Columns, Constant, Edges, SideBySide, SparseMatrix

#: Share of values other than zero below which constant rows are kept as a sparse matrix.
SPARSE_BELOW = 0.1


class Graph(Constant):
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
class Nodes(Constant):
    """The states of all nodes of a graph, in one view or several, and the nodes that are asked about.

    What a front makes of states and graph is a constant of the two: it is kept here, so it is known by them
    and by nothing else, and goes with them.

    Attributes:
        states: ``[n, d]`` for each view; one for all views where they do not differ.
        graphs: For each view; one for all views where they do not differ.
        beside: More columns of the states, ``[n, d'']``, that do not stay; with one view only.
        wanted: The nodes that are asked about, ``[m]``; None: all.
        keeps: Whether the rows of ``wanted`` will be asked for again: then they are kept as well.
        leads: Whether only the first view's states go up, for all views.
        pairs: Pairs of nodes that readouts are to judge, ``[B, 2]``; None: nodes.
        memo: What fronts have answered; None: nothing is kept.
        store: Where it is kept, but for sparse rows, and where states go that these are raised to.
    """

    states: tuple[Tensor, ...]
    graphs: tuple[Graph, ...]
    beside: Tensor | None = None
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
        return replace(self, states=states[:1] if self.leads else states, beside=None, memo=kept)

    def rows(self, name: str, make: Callable[[Tensor, Graph], Tensor]) -> Columns:
        """What ``make`` makes of states and graph for the nodes asked about, ``[views * m, d']``.

        What stands beside the states is made of by itself.

        Args:
            name: What ``make`` is known by: rows that were made under a name are not made again.
            make: Makes ``[n, d']`` of states ``[n, d]`` and a graph.
        """
        if self.beside is not None:
            fresh = replace(self, states=(self.beside,), beside=None, keeps=False, memo=None)
            return SideBySide(replace(self, beside=None)._rows(name, make), fresh._rows(name, make))
        return self._rows(name, make)

    def _rows(self, name: str, make: Callable[[Tensor, Graph], Tensor]) -> Tensor | SparseMatrix:
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

    def operator(self, kind: str) -> SparseMatrix:
        """Of the first view's graph, the rows of `Graph.operator` that are asked about, ``[m, n]``."""
        whole = self.view(0)[1].operator(kind)
        if self.wanted is None:
            return whole
        key = (kind, id(self.wanted))
        if self.memo is not None and key in self.memo:
            return self.memo[key][0]  # type: ignore[no-any-return]
        found = whole.picked(self.wanted)
        if self.memo is not None and self.keeps:
            self.memo[key] = (found, self.wanted)
        return found

    def edges(self) -> Edges:
        """Edges and own loops into the nodes asked about, all views side by side as one graph.

        Sources are counted on through the views; there are views * m rows.
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
        found = Edges(torch.cat(sources), torch.cat(targets), own, self.views * n)
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
