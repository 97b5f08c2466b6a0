"""The edges of a graph, sorted by target, and sums along them."""

from __future__ import annotations

import torch
from torch import Tensor

from bpfree.graphs.sparse import Constant, csr_tensor, row_pointers


class Edges(Constant):
    """Edges from n sources to r rows, sorted by row, and sums along them.

    Args:
        source: Source of each edge, ``[E]``.
        target: Row that each edge points to, ``[E]``; every row has at least one edge.
        row_sources: The source that is the same node as each row, ``[r]``.
        n_sources: n.
    """

    def __init__(self, source: Tensor, target: Tensor, row_sources: Tensor, n_sources: int) -> None:
        order = torch.argsort(target * n_sources + source)
        self.source, self.target = source[order], target[order]
        self.row_sources, self.n_sources = row_sources, n_sources
        self._pointers = row_pointers(self.target, len(row_sources))
        self._transposed_order = torch.argsort(self.source * len(row_sources) + self.target)
        self._transposed_pointers = row_pointers(self.source, n_sources)
        self._transposed_target = self.target[self._transposed_order]
        self._edge_numbers = torch.arange(len(source), device=source.device)
        self._per_head: dict[int, Edges] = {}

    def per_head(self, heads: int) -> Edges:
        """The edges of a graph with ``heads`` copies of each source and row, one after another; cached.

        Edges join copies of the same head only.
        """
        if heads not in self._per_head:
            head = torch.arange(heads, device=self.source.device)
            source, target, row_sources = (
                (nodes.unsqueeze(1) * heads + head).flatten()
                for nodes in (self.source, self.target, self.row_sources)
            )
            self._per_head[heads] = Edges(source, target, row_sources, self.n_sources * heads)
        return self._per_head[heads]

    def matrix(self, value: Tensor) -> Tensor:
        """The CSR matrix ``[r, n]`` with a value ``[E]`` for each edge."""
        return csr_tensor(
            self._pointers, self.source, value.contiguous(), (len(self.row_sources), self.n_sources)
        )

    def transposed_matrix(self, value: Tensor) -> Tensor:
        """The transpose of `matrix`."""
        shape = (self.n_sources, len(self.row_sources))
        return csr_tensor(
            self._transposed_pointers, self._transposed_target, value[self._transposed_order], shape
        )

    def sum_by_row(self, value: Tensor) -> Tensor:
        """Sums ``[r]`` of values ``[E]`` over the edges into each row."""
        return self._sums(self._pointers, self._edge_numbers, value)

    def sum_by_source(self, value: Tensor) -> Tensor:
        """Sums ``[n]`` of values ``[E]`` over the edges from each source."""
        return self._sums(self._transposed_pointers, self._transposed_order, value)

    def _sums(self, pointers: Tensor, edges: Tensor, value: Tensor) -> Tensor:
        ones = value.new_ones(len(value))
        return csr_tensor(pointers, edges, ones, (len(pointers) - 1, len(value))) @ value

    def max_by_row(self, value: Tensor) -> Tensor:
        """The largest of the values ``[E]`` of the edges into each row, ``[r]``."""
        return torch.segment_reduce(value, "max", offsets=self._pointers, unsafe=True)

    def inner_products(self, rows: Tensor, sources: Tensor) -> Tensor:
        """The inner product ``[E]`` of each edge's ends: ``rows [r, D]``, ``sources [n, D]``."""
        pattern = self.matrix(rows.new_zeros(len(self.source)))
        products: Tensor = torch.sparse.sampled_addmm(pattern, rows, sources.T, beta=0.0).values()
        return products
