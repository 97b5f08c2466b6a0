"""The states of the nodes of a graph."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from bpfree.graphs.graph import Graph
from bpfree.graphs.sparse import Constant


@dataclass(frozen=True, eq=False)
class NodeStates(Constant):
    """The states of all n nodes of a graph, in one variant or in several, such as one for each label.

    The states of variant k are ``states[k] + codes[k] @ codebook``, on ``graphs[k]``. A tuple of length 1
    holds for all variants.

    Attributes:
        states: ``[n, d]`` for each variant.
        graphs: A graph for each variant.
        codes: ``[n, c]`` for each variant: what differs by variant, or is full where the rest is sparse.
        codebook: ``[c, d]``.
        sparse: Whether most values of ``states`` are zero.
        feedback: Further columns from the block above, ``[n, d'']``; with one variant only.
        pass_first_variant: Whether the block above gets the states of the first variant for all variants.
    """

    states: tuple[Tensor, ...]
    graphs: tuple[Graph, ...]
    codes: tuple[Tensor, ...] = ()
    codebook: Tensor | None = None
    sparse: bool = False
    feedback: Tensor | None = None
    pass_first_variant: bool = False

    @cached_property
    def n_variants(self) -> int:
        """Number of variants."""
        return max(len(self.states), len(self.graphs), len(self.codes))

    @property
    def n_nodes(self) -> int:
        """Number of nodes n."""
        return len(self.states[0])

    def dense(self, variant: int) -> Tensor:
        """The states of one variant, ``[n, d]``."""
        states = self.states[variant % len(self.states)]
        if self.codebook is None:
            return states
        return states + self.codes[variant % len(self.codes)] @ self.codebook

    def graph(self, variant: int) -> Graph:
        """The graph of one variant."""
        return self.graphs[variant % len(self.graphs)]

    def first_variant(self) -> NodeStates:
        """The first variant alone, where all variants have the same ``states``."""
        return replace(self, graphs=self.graphs[:1], codes=self.codes[:1])

    def next_layer(self, output: Tensor) -> NodeStates:
        """The states ``output [variants * n, d']`` of the next layer, detached, on the same graphs."""
        states = output.detach().view(-1, self.n_nodes, output.shape[1]).unbind(0)
        states = states[:1] if self.pass_first_variant else states
        return NodeStates(states, self.graphs, pass_first_variant=self.pass_first_variant)

    def lengths(self) -> list[Tensor]:
        """Euclidean lengths of the states of each variant, ``[n, 1]``; equal ones are one tensor."""
        lengths: list[Tensor] = []
        computed: dict[tuple[int, int], Tensor] = {}
        for variant in range(self.n_variants):
            states = self.states[variant % len(self.states)]
            codes = self.codes[variant % len(self.codes)] if self.codes else states
            key = (id(states), id(codes))
            if key not in computed:
                computed[key] = _lengths(states, codes, self.codebook)
            lengths.append(computed[key])
        return [lengths[0] if torch.equal(length, lengths[0]) else length for length in lengths]


def _lengths(states: Tensor, codes: Tensor, codebook: Tensor | None) -> Tensor:
    """Lengths of the rows of ``states + codes @ codebook``, ``[n, 1]``."""
    lengths: Tensor = torch.linalg.vector_norm(states, dim=1)
    if codebook is None:
        return lengths.unsqueeze(1)
    square = lengths.square() + 2 * ((states @ codebook.T) * codes).sum(1)
    square = square + ((codes @ (codebook @ codebook.T)) * codes).sum(1)
    return square.clamp_min(0).sqrt().unsqueeze(1)
