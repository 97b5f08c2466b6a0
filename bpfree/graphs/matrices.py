"""Matrices of node features that are stored in parts, and their products with weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bpfree.graphs.sparse import SparseMatrix


class Concatenated:
    """Columns in several matrices, so that a constant part is not copied beside a new one.

    Args:
        parts: ``[m, d]`` each, left to right.
    """

    def __init__(self, *parts: Matrix) -> None:
        self.parts = parts
        self.shape: tuple[int, ...] = (parts[0].shape[0], sum(part.shape[1] for part in parts))


class Repeated:
    """The same rows several times, one after another.

    Args:
        part: ``[m, d]``.
        number: How often.
    """

    def __init__(self, part: Tensor | SparseMatrix, number: int) -> None:
        self.part, self.number = part, number
        self.shape: tuple[int, ...] = (number * part.shape[0], part.shape[1])


class WithCodes:
    """``base + codes @ codebook``: the sum of sparse rows and of combinations of few full ones.

    Args:
        base: ``[m, K d]``: K matrices beside each other.
        codes: ``[m, K c]``, for each of the K.
        codebook: ``[c, d]``.
    """

    def __init__(self, base: Matrix, codes: Matrix, codebook: Tensor) -> None:
        self.base, self.codes, self.codebook = base, codes, codebook
        self.shape: tuple[int, ...] = base.shape


class Propagated:
    """``A X`` for the states X of all nodes, not multiplied out.

    ``A (X W)`` takes fewer multiplications than ``(A X) W`` where X is sparse, since A X is less so.

    Args:
        states: X of all nodes, ``[n, d]``, or ``[variants * n, d]``.
        operators: A of each variant, ``[n, n]``.
        concat_states: Whether the columns of X follow those of A X.
        target_nodes: The rows of the result, ``[m]``; None: all.
    """

    def __init__(
        self,
        states: Matrix,
        operators: Sequence[SparseMatrix],
        concat_states: bool,
        target_nodes: Tensor | None,
    ) -> None:
        self.states, self.concat_states, self.target_nodes = states, concat_states, target_nodes
        self.operators = [a if target_nodes is None else a.select_rows(target_nodes) for a in operators]
        m, self.n_nodes = self.operators[0].shape
        self.shape: tuple[int, ...] = (len(operators) * m, states.shape[1] * (2 if concat_states else 1))

    def linear(self, weight: Tensor, states_weight: Tensor | None = None) -> Tensor:
        """``A X weight^T + X states_weight^T``, ``[variants * m, H]``, of weights ``[H, d]``."""
        products = self._by_variant(weight)
        result = torch.cat([a @ x for a, x in zip(self.operators, products, strict=True)])
        if states_weight is None:
            return result
        states = self._by_variant(states_weight)
        return result + torch.cat([x if self.target_nodes is None else x[self.target_nodes] for x in states])

    def _by_variant(self, weight: Tensor) -> list[Tensor]:
        product = linear(self.states, weight).view(-1, self.n_nodes, len(weight)).unbind(0)
        return [product[k % len(product)] for k in range(len(self.operators))]


Matrix = Tensor | SparseMatrix | Concatenated | Repeated | WithCodes | Propagated


def linear(x: Matrix, *weights: Tensor) -> Tensor:
    """``x [m, K d]`` times the transposes of K weights ``[H, d]``, one for each d columns; ``[m, H]``.

    Each part of a `Concatenated` has some of the d columns, K times, in order.
    """
    if isinstance(x, Propagated):
        return x.linear(*weights)
    if isinstance(x, Concatenated):
        widths = [part.shape[1] // len(weights) for part in x.parts]
        by_part = zip(*(weight.split(widths, 1) for weight in weights), strict=True)
        products = [linear(part, *part_weights) for part, part_weights in zip(x.parts, by_part, strict=True)]
        return torch.stack(products).sum(0)
    if isinstance(x, WithCodes):
        codes = linear(x.codes, *((x.codebook @ weight.T).T for weight in weights))
        if isinstance(x.base, Repeated):
            by_variant = codes.view(x.base.number, -1, codes.shape[1])
            return by_variant.add_(linear(x.base.part, *weights)).flatten(0, 1)
        return codes.add_(linear(x.base, *weights))
    if isinstance(x, Repeated):
        return linear(x.part, *weights).repeat(x.number, 1)
    return x @ (weights[0] if len(weights) == 1 else torch.cat(weights, 1)).T
