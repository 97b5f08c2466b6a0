"""The states of the nodes of a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bpfree._feature_store import Store
from bpfree._rows import StructuredRows
from bpfree.graphs.graph import Graph, mostly_zero
from bpfree.graphs.sparse import Columns, Constant, Edges, Raised, Repeated, SideBySide, SparseMatrix


@dataclass(frozen=True, eq=False)
class Ends:
    """Outputs for pairs of nodes, not multiplied out.

    Attributes:
        output: Of all nodes, ``[n, d]``.
        pairs: int64 ``[B, 2]``.
    """

    output: Tensor
    pairs: Tensor


@dataclass(frozen=True, eq=False)
class Nodes(Constant, StructuredRows):
    """The states of all nodes of a graph, in one view or several, and the nodes that are asked about.

    What a front makes of states and graph is a constant of the two: it is kept here, so it is known by them
    and by nothing else, and goes with them.

    Attributes:
        states: ``[n, d]`` for each view; one for all views where they do not differ.
        graphs: For each view; one for all views where they do not differ.
        beside: More columns of the states, ``[n, d'']``, that do not stay; with one view only.
        codes: For each view (one for all where they do not differ), ``[n, c]``: ``codes book`` is added to
            the states. What differs by view, or is full where the rest is sparse, is kept apart so.
        book: ``[c, d]``.
        wanted: The nodes that are asked about, ``[m]``; None: all.
        keeps: Whether the rows of ``wanted`` will be asked for again: then they are kept as well.
        leads: Whether only the first view's states go up, for all views.
        sparse: Whether the states are zeros for the most part; rows made of them are kept sparse if they are.
        pairs: Pairs of nodes that readouts are to judge, ``[B, 2]``; None: nodes.
        memo: What fronts have answered; None: nothing is kept.
        store: Where it is kept, but for sparse rows, and where states go that these are raised to.
    """

    states: tuple[Tensor, ...]
    graphs: tuple[Graph, ...]
    beside: Tensor | None = None
    codes: tuple[Tensor, ...] = ()
    book: Tensor | None = None
    wanted: Tensor | None = None
    keeps: bool = False
    leads: bool = False
    sparse: bool = False
    pairs: Tensor | None = None
    memo: dict[Any, Any] | None = field(default_factory=dict)
    store: Store = field(default_factory=Store)

    @property
    def views(self) -> int:
        """Number of views."""
        return max(len(self.states), len(self.graphs), len(self.codes))

    @property
    def n_nodes(self) -> int:
        """Number of nodes n."""
        return len(self.states[0])

    def full(self, number: int) -> Tensor:
        """The states of one view, ``[n, d]``."""
        states = self.states[number % len(self.states)]
        return states if self.book is None else states + self.codes[number % len(self.codes)] @ self.book

    def graph(self, number: int) -> Graph:
        """The graph of one view."""
        return self.graphs[number % len(self.graphs)]

    def wanting(self, wanted: Tensor | None, keeps: bool = False, pairs: Tensor | None = None) -> Nodes:
        """The same states, with other nodes or pairs asked about."""
        return replace(self, wanted=wanted, keeps=keeps, pairs=pairs)

    def whole(self) -> Nodes:
        """What goes up must be known of: all nodes, in those views whose states go up."""
        if self.leads:
            return replace(self, graphs=self.graphs[:1], codes=self.codes[:1], wanted=None, memo=None)
        return self.wanting(None)

    def up(self, output: Tensor) -> Nodes:
        """The states ``output [views * n, d']`` in place of these, on the same graphs."""
        states = output.detach().view(-1, self.n_nodes, output.shape[1]).unbind(0)
        kept: dict[Any, Any] | None = None if self.memo is None else {}
        states = states[:1] if self.leads else states
        return replace(self, states=states, beside=None, codes=(), book=None, sparse=False, memo=kept)

    def rows(self, name: str, make: Callable[[Tensor, Graph], Tensor], normalize: bool = False) -> Columns:
        """What ``make`` makes of states and graph for the nodes asked about, ``[views * m, d']``.

        What stands beside the states is made of by itself, and so are their codes.

        Args:
            name: What ``make`` is known by: rows that were made under a name are not made again.
            make: Makes ``[n, K d]`` of states ``[n, d]`` and a graph, linearly in the states.
            normalize: Whether the states of each node get length 1 first, those beside them by themselves.
        """
        if self.beside is not None:
            below = replace(self, beside=None)
            fresh = Nodes((self.beside,), self.graphs, wanted=self.wanted, memo=None, store=self.store)
            return SideBySide(below.rows(name, make, normalize), fresh.rows(name, make, normalize))
        key = (name, normalize, None if self.wanted is None else id(self.wanted))
        keeps = self.memo is not None and self.keeps
        if keeps and self.memo is not None and key in self.memo:
            return self.memo[key][0]  # type: ignore[no-any-return]
        lengths = self._lengths() if normalize else [None] * self.views
        found = self._made((name, normalize), make, self.states, lengths)
        if self.book is not None:
            codes = self._made((name, normalize, "codes"), make, self.codes, lengths)
            found = Raised(found, codes, self.book)
        if keeps and self.memo is not None:
            self.memo[key] = (found, self.wanted)  # the key is an address: what stands there must stay
        return found

    def _made(
        self,
        name: Any,
        make: Callable[[Tensor, Graph], Tensor],
        values: tuple[Tensor, ...],
        lengths: Sequence[Tensor | None],
    ) -> Columns:
        """What ``make`` makes of ``values [n, d]`` over ``lengths [n, 1]``, by view; of equal views once."""
        parts: list[Tensor] = []
        made: dict[tuple[int, ...], Tensor] = {}
        for number in range(self.views):
            value, graph, length = values[number % len(values)], self.graph(number), lengths[number]
            key = (id(value), id(graph), id(length))
            if key not in made:
                made[key] = self._whole((name, number), make, value, graph, length)
            parts.append(made[key])
        if self._alike(parts):
            parts = parts[:1]
        found: Tensor | SparseMatrix = self._picked(
            parts, self.store if self.memo is not None and self.keeps else Store()
        )
        assert isinstance(found, Tensor)
        if values is self.states and self.sparse and self.keeps and mostly_zero(found):
            found = SparseMatrix.of(found)
        return found if len(parts) == self.views else Repeated(found, self.views)

    def _alike(self, parts: list[Tensor]) -> bool:
        """Whether the rows asked about are the same in all views; looked at only if they are kept."""
        first, at = parts[0], slice(None) if self.wanted is None else self.wanted
        return all(part is first or (self.keeps and torch.equal(part[at], first[at])) for part in parts[1:])

    def _lengths(self) -> list[Tensor]:
        """Lengths of the states, by view, ``[n, 1]``; the same tensor where they are equal."""
        key = ("lengths", self.views)
        if self.memo is not None and key in self.memo:
            return self.memo[key]  # type: ignore[no-any-return]
        found: list[Tensor] = []
        known: dict[tuple[int, int], Tensor] = {}
        for number in range(self.views):
            states = self.states[number % len(self.states)]
            codes = self.codes[number % len(self.codes)] if self.codes else states
            made_of = (id(states), id(codes))
            if made_of not in known:
                known[made_of] = _lengths(states, codes, self.book)
            found.append(known[made_of])
        found = [found[0] if torch.equal(length, found[0]) else length for length in found]
        if self.memo is not None:
            self.memo[key] = found
        return found

    def columns(self, normalize: bool) -> Columns:
        """The states of all nodes, ``[n, d]``, ``[views * n, d]`` where they differ by view; once a memo."""
        alike = replace(self, graphs=self.graphs[:1], wanted=None, keeps=True)
        return alike.rows("states", lambda states, _: states, normalize)

    def operator(self, kind: str) -> SparseMatrix:
        """Of the first view's graph, the rows of `Graph.operator` that are asked about, ``[m, n]``."""
        whole = self.graph(0).operator(kind)
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
            source, target = self.graph(number).with_loops()
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

    def _whole(
        self,
        name: Any,
        make: Callable[[Tensor, Graph], Tensor],
        value: Tensor,
        graph: Graph,
        length: Tensor | None,
    ) -> Tensor:
        """All rows of one view; kept unless several views would be and their wanted rows are kept anyway."""
        key = ("view", name)
        if self.memo is not None and key in self.memo:
            return self.memo[key]  # type: ignore[no-any-return]
        if length is not None:
            scaled = self.store.filled(len(value), lambda at: (value[at] / (length[at] + 1e-8))[None])[0]
        found = make(value if length is None else scaled, graph)
        if self.memo is not None and not (self.keeps and self.views > 1):
            self.memo[key] = found
        return found


def _lengths(states: Tensor, codes: Tensor, book: Tensor | None) -> Tensor:
    """Lengths of the rows of ``states + codes book``, ``[n, 1]``."""
    lengths: Tensor = torch.linalg.vector_norm(states, dim=1)
    if book is None:
        return lengths.unsqueeze(1)
    square = lengths.square() + 2 * ((states @ book.T) * codes).sum(1)
    square = square + ((codes @ (book @ book.T)) * codes).sum(1)
    return square.clamp_min(0).sqrt().unsqueeze(1)
