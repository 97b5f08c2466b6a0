"""The input of a block on a graph: states of all nodes, the nodes whose outputs are needed, and a cache."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bpfree._feature_store import Store
from bpfree._rows import StructuredRows
from bpfree.graphs.cache import NodeCache
from bpfree.graphs.edges import Edges
from bpfree.graphs.graph import Graph, mostly_zero
from bpfree.graphs.matrices import Concatenated, Matrix, Repeated, WithCodes
from bpfree.graphs.sparse import Constant, SparseMatrix
from bpfree.graphs.states import NodeStates

#: Computes ``[n, K d]`` from states ``[n, d]`` and a graph, linearly in the states.
Aggregation = Callable[[Tensor, Graph], Tensor]


@dataclass(frozen=True, eq=False)
class NodeQuery:
    """The nodes whose outputs are needed.

    Attributes:
        target_nodes: Their numbers, int64 ``[m]``; None: all nodes.
        pairs: Pairs of nodes that readouts score, int64 ``[B, 2]``; None: they score nodes.
        repeated: Whether the same query comes again, so that results for its nodes are worth caching.
    """

    target_nodes: Tensor | None = None
    pairs: Tensor | None = None
    repeated: bool = False


#: Outputs of all nodes are needed once.
ALL_NODES = NodeQuery()


@dataclass(frozen=True, eq=False)
class PairOutputs:
    """The outputs of all nodes, and the pairs of nodes that readouts score by them.

    Attributes:
        output: ``[n, d]``.
        pairs: int64 ``[B, 2]``.
    """

    output: Tensor
    pairs: Tensor


@dataclass(frozen=True, eq=False)
class Nodes(Constant, StructuredRows):
    """The input of a block on a graph.

    Attributes:
        states: The states of all nodes, on their graph.
        query: The nodes whose outputs are needed.
        cache: Results computed from ``states`` before.
    """

    states: NodeStates
    query: NodeQuery = ALL_NODES
    cache: NodeCache = field(default_factory=NodeCache)

    def with_query(self, query: NodeQuery) -> Nodes:
        """The same states and cache with another query."""
        return Nodes(self.states, query, self.cache)

    def next_layer(self, output: Tensor) -> Nodes:
        """The same query on the states ``output [variants * n, d']``, with an empty cache."""
        return Nodes(self.states.next_layer(output), self.query, self.cache.for_other_states())

    def for_next_layer(self) -> Nodes:
        """The input whose output is the states of the next layer: all nodes, in the variants needed there."""
        if self.states.pass_first_variant:
            return Nodes(self.states.first_variant(), ALL_NODES, self.cache.disabled())
        return self.with_query(ALL_NODES)

    # ---- fronts ----------------------------------------------------------------------------------------

    def compute(self, name: str, function: Aggregation, normalize: bool = False) -> Matrix:
        """``function(states, graph)`` for the target nodes, ``[variants * m, K d]``.

        Feedback and codes are passed to ``function`` separately from the states.

        Args:
            name: Identifies ``function`` in the cache.
            function: The aggregation.
            normalize: Whether the states of each node are divided by their length first; so is its feedback.
        """
        states, query, cache = self.states, self.query, self.cache
        if states.feedback is not None:
            without = Nodes(replace(states, feedback=None), query, cache)
            feedback = Nodes(
                NodeStates((states.feedback,), states.graphs),
                NodeQuery(query.target_nodes),
                cache.disabled(),
            )
            parts = (without, feedback)
            return Concatenated(*(part.compute(name, function, normalize) for part in parts))
        key = ("result", name, normalize)
        if query.repeated:
            cached: Matrix | None = cache.get(key, query.target_nodes)
            if cached is not None:
                return cached
        lengths = self._lengths() if normalize else [None] * states.n_variants
        result = self._by_variant((name, normalize), function, states.states, lengths)
        if states.codebook is not None:
            codes = self._by_variant((name, normalize, "codes"), function, states.codes, lengths)
            result = WithCodes(result, codes, states.codebook)
        if query.repeated:
            cache.put(key, result, query.target_nodes)
        return result

    def dense_states(self, normalize: bool) -> Matrix:
        """The states of all nodes: ``[n, d]``, or ``[variants * n, d]`` where they differ; cached."""
        states = replace(self.states, graphs=self.states.graphs[:1])
        alike = Nodes(states, NodeQuery(repeated=True), self.cache)
        return alike.compute("states", lambda states, _: states, normalize)

    def _by_variant(
        self,
        name: Hashable,
        function: Aggregation,
        values: tuple[Tensor, ...],
        lengths: Sequence[Tensor | None],
    ) -> Matrix:
        """``function`` of ``values [n, d]`` divided by ``lengths [n, 1]``, by variant; of equal ones once."""
        states, query, cache = self.states, self.query, self.cache
        parts: list[Tensor] = []
        computed: dict[tuple[int, int, int], Tensor] = {}
        for variant in range(states.n_variants):
            value, graph, length = values[variant % len(values)], states.graph(variant), lengths[variant]
            key = (id(value), id(graph), id(length))
            if key not in computed:
                computed[key] = self._of_all_nodes((name, variant), function, value, graph, length)
            parts.append(computed[key])
        if self._are_equal(parts):
            parts = parts[:1]
        result = self._select(parts, cache.store if cache.enabled and query.repeated else Store())
        matrix: Tensor | SparseMatrix = result
        if values is states.states and states.sparse and query.repeated and mostly_zero(result):
            matrix = SparseMatrix.from_dense(result)
        return matrix if len(parts) == states.n_variants else Repeated(matrix, states.n_variants)

    def _are_equal(self, parts: list[Tensor]) -> bool:
        """Whether the rows of the target nodes are the same in all variants; compared only if cached."""
        first, nodes = parts[0], self.query.target_nodes
        index = slice(None) if nodes is None else nodes
        return all(
            part is first or (self.query.repeated and torch.equal(part[index], first[index]))
            for part in parts[1:]
        )

    def _lengths(self) -> list[Tensor]:
        """`NodeStates.lengths`, cached."""
        key = ("lengths", self.states.n_variants)
        lengths: list[Tensor] | None = self.cache.get(key)
        if lengths is None:
            lengths = self.states.lengths()
            self.cache.put(key, lengths)
        return lengths

    def _select(self, parts: list[Tensor], store: Store) -> Tensor:
        """The rows of the target nodes in each variant, ``[variants * m, d']``."""
        nodes = self.query.target_nodes
        if nodes is None:
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        rows = store.filled(
            len(nodes), lambda part: torch.stack([p.index_select(0, nodes[part]) for p in parts])
        )
        return rows.flatten(0, 1)

    def _of_all_nodes(
        self, name: Hashable, function: Aggregation, value: Tensor, graph: Graph, length: Tensor | None
    ) -> Tensor:
        """``function`` for all nodes of one variant.

        It is cached unless there are several variants whose rows for the target nodes are cached.
        """
        key = ("all nodes", name)
        cached: Tensor | None = self.cache.get(key)
        if cached is not None:
            return cached
        if length is not None:
            scaled = self.cache.store.filled(
                len(value), lambda part: (value[part] / (length[part] + 1e-8))[None]
            )[0]
        result = function(value if length is None else scaled, graph)
        if not (self.query.repeated and self.states.n_variants > 1):
            self.cache.put(key, result)
        return result

    # ---- graphs ----------------------------------------------------------------------------------------

    def operator(self, kind: str) -> SparseMatrix:
        """The rows of the first variant's `Graph.operator` for the target nodes, ``[m, n]``."""
        operator, nodes = self.states.graph(0).operator(kind), self.query.target_nodes
        if nodes is None:
            return operator
        key = ("operator", kind)
        cached: SparseMatrix | None = self.cache.get(key, nodes)
        if cached is not None:
            return cached
        rows = operator.select_rows(nodes)
        if self.query.repeated:
            self.cache.put(key, rows, nodes)
        return rows

    def edges(self) -> Edges:
        """Edges and self-loops into the target nodes, with all variants as one graph of separate parts.

        There are ``variants * n`` sources and ``variants * m`` rows.
        """
        nodes, n = self.query.target_nodes, self.states.n_nodes
        cacheable = self.query.repeated or nodes is None
        cached: Edges | None = self.cache.get("edges", nodes) if cacheable else None
        if cached is not None:
            return cached
        rows = torch.arange(n, device=self.states.states[0].device) if nodes is None else nodes
        sources, targets = [], []
        for variant in range(self.states.n_variants):
            source, target = self.states.graph(variant).with_self_loops()
            if nodes is not None:
                row = torch.full((n,), -1, device=target.device)
                row[nodes] = torch.arange(len(nodes), device=target.device)
                into_targets = row[target] >= 0
                source, target = source[into_targets], row[target[into_targets]]
            sources.append(source + variant * n)
            targets.append(target + variant * len(rows))
        n_variants = self.states.n_variants
        row_sources = torch.cat([rows + variant * n for variant in range(n_variants)])
        edges = Edges(torch.cat(sources), torch.cat(targets), row_sources, n_variants * n)
        if cacheable:
            self.cache.put("edges", edges, nodes)
        return edges
