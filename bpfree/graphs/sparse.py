"""Constant sparse matrices, the edges of a graph as such matrices, and rows that are kept in parts."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor


class Constant:
    """Something that never changes: a copy is the thing itself."""

    def __deepcopy__(self, _: dict[int, Any]) -> Self:
        return self


class SparseMatrix(Constant):
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
        """A matrix with other entries ``[E]`` in the places of ``value``, whose order is shared."""
        self._order()
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

    def picked(self, index: Tensor) -> SparseMatrix:
        """The rows at ``index [r]``, ``[r, m]``."""
        first, number = self._pointers[index], self._pointers.diff()[index]
        row = torch.arange(len(index), device=index.device).repeat_interleave(number)
        within = torch.arange(len(row), device=index.device) - (number.cumsum(0) - number)[row]
        entry = first[row] + within
        return SparseMatrix(row, self._column[entry], self.value[entry], (len(index), self.shape[1]))

    def _order(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where the transpose's entries are in ``value``, its pointers and its columns; made once."""
        if self._turned is None:
            order = torch.argsort(self._column * self.shape[0] + self._row)
            pointers = _pointers(self._column[order], self.shape[1])
            self._turned = (order, pointers, self._row[order])
        return self._turned

    @property
    def transposed(self) -> Tensor:
        """The transpose, as a CSR tensor."""
        if self._backward is None:
            order, pointers, column = self._order()
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
            return multiply(matrix._forward, x.to(matrix.value.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        with torch.autocast(grad.device.type, enabled=False):
            found = multiply(ctx.matrix.transposed, grad.to(ctx.matrix.value.dtype).contiguous())
        return None, found.to(ctx.dtype)


def multiply(sparse: Tensor, x: Tensor) -> Tensor:
    """``sparse [n, m]`` times ``x [m, H]``, without a gradient; `@` would fill and copy one more map."""
    return x.new_empty(len(sparse), x.shape[1]).addmm_(sparse, x, beta=0.0)


def _pointers(row: Tensor, n: int) -> Tensor:
    counts = torch.bincount(row, minlength=n)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _csr(pointers: Tensor, column: Tensor, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its CSR tensors a beta
        return torch.sparse_csr_tensor(pointers, column, value, shape, check_invariants=False)


class Edges(Constant):
    """Edges from n sources to r rows, in the order of the rows, and sums along them.

    Args:
        source: Of each edge, ``[E]``.
        target: The row that each edge points to, ``[E]``; every row has one.
        own: The source that each row is itself, ``[r]``.
        n_sources: n.
    """

    def __init__(self, source: Tensor, target: Tensor, own: Tensor, n_sources: int) -> None:
        order = torch.argsort(target * n_sources + source)
        self.source, self.target, self.own, self.n_sources = source[order], target[order], own, n_sources
        self._pointers = _pointers(self.target, len(own))
        self._turn = torch.argsort(self.source * len(own) + self.target)
        self._turned_pointers, self._turned_target = (
            _pointers(self.source, n_sources),
            self.target[self._turn],
        )
        self._places = torch.arange(len(source), device=source.device)
        self._parted: dict[int, Edges] = {}

    def parted(self, number: int) -> Edges:
        """Where each source and each row is ``number`` of them, one after another, that never meet; made
        once.
        """
        if number not in self._parted:
            at = torch.arange(number, device=self.source.device)
            source, target, own = (
                (whole.unsqueeze(1) * number + at).flatten() for whole in (self.source, self.target, self.own)
            )
            self._parted[number] = Edges(source, target, own, self.n_sources * number)
        return self._parted[number]

    def matrix(self, value: Tensor) -> Tensor:
        """The CSR matrix ``[r, n]`` with a value ``[E]`` for each edge."""
        return _csr(self._pointers, self.source, value.contiguous(), (len(self.own), self.n_sources))

    def turned_matrix(self, value: Tensor) -> Tensor:
        """The transpose of `matrix`."""
        shape = (self.n_sources, len(self.own))
        return _csr(self._turned_pointers, self._turned_target, value[self._turn], shape)

    def into_rows(self, value: Tensor) -> Tensor:
        """Sums ``[r]`` of values ``[E]`` over the edges into each row."""
        return self._sums(self._pointers, self._places, value)

    def into_sources(self, value: Tensor) -> Tensor:
        """Sums ``[n]`` of values ``[E]`` over the edges from each source."""
        return self._sums(self._turned_pointers, self._turn, value)

    def _sums(self, pointers: Tensor, edges: Tensor, value: Tensor) -> Tensor:
        one = value.new_ones(len(value))
        return _csr(pointers, edges, one, (len(pointers) - 1, len(value))) @ value

    def largest(self, value: Tensor) -> Tensor:
        """The largest of the values ``[E]`` of the edges into each row, ``[r]``."""
        return torch.segment_reduce(value, "max", offsets=self._pointers, unsafe=True)

    def inner(self, rows: Tensor, sources: Tensor) -> Tensor:
        """Inner products ``[E]`` of both ends: ``rows [r, D]``, ``sources [n, D]``."""
        places = self.matrix(rows.new_zeros(len(self.source)))
        found: Tensor = torch.sparse.sampled_addmm(places, rows, sources.T, beta=0.0).values()
        return found


class SideBySide:
    """Rows whose columns stand in several matrices: a constant one need not be copied beside a new one.

    Args:
        parts: ``[m, d]`` each, left to right.
    """

    def __init__(self, *parts: Columns) -> None:
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


class Raised:
    """``base + codes book``: sparse rows, and full ones that are combinations of few.

    Args:
        base: ``[m, K d]``; K stand side by side.
        codes: ``[m, K c]``, for each of the K.
        book: ``[c, d]``.
    """

    def __init__(self, base: Columns, codes: Columns, book: Tensor) -> None:
        self.base, self.codes, self.book = base, codes, book
        self.shape: tuple[int, ...] = base.shape


class Propagated:
    """What operators of graphs make of the states of all nodes, not multiplied out: ``A (X W)`` takes fewer
    multiplications than ``(A X) W`` where X is sparse, since A X is less so.

    Args:
        states: Of all nodes, ``[n, d]``, or ``[views * n, d]``.
        operators: For each view, ``[n, n]``.
        own: Whether the states themselves stand beside what is made of them.
        wanted: The rows that are asked for, ``[m]``; None: all.
    """

    def __init__(
        self, states: Columns, operators: Sequence[SparseMatrix], own: bool, wanted: Tensor | None
    ) -> None:
        self.states, self.own, self.wanted = states, own, wanted
        self.operators = [one if wanted is None else one.picked(wanted) for one in operators]
        m, self.n_nodes = self.operators[0].shape
        self.shape: tuple[int, ...] = (len(operators) * m, states.shape[1] * (2 if own else 1))

    def times(self, weight: Tensor, beside: Tensor | None = None) -> Tensor:
        """``[views * m, H]`` of ``weight [H, d]`` for what is made, and one for what stands beside it."""
        products = self._by_view(weight)
        found = torch.cat([operator @ x for operator, x in zip(self.operators, products, strict=True)])
        if beside is None:
            return found
        return found + torch.cat(
            [x if self.wanted is None else x[self.wanted] for x in self._by_view(beside)]
        )

    def _by_view(self, weight: Tensor) -> list[Tensor]:
        product = times(self.states, weight).view(-1, self.n_nodes, len(weight)).unbind(0)
        return [product[view % len(product)] for view in range(len(self.operators))]


Columns = Tensor | SparseMatrix | SideBySide | Repeated | Raised | Propagated


def times(rows: Columns, *weights: Tensor) -> Tensor:
    """``rows [m, K d]`` times K weights ``[H, d]``, one for each d columns; ``[m, H]``.

    Rows side by side have K times some of the d columns in each part, in order.
    """
    if isinstance(rows, Propagated):
        return rows.times(*weights)
    if isinstance(rows, SideBySide):
        widths = [part.shape[1] // len(weights) for part in rows.parts]
        cut = zip(*(weight.split(widths, 1) for weight in weights), strict=True)
        products = [times(part, *own) for part, own in zip(rows.parts, cut, strict=True)]
        return torch.stack(products).sum(0)
    if isinstance(rows, Raised):
        codes = times(rows.codes, *((rows.book @ weight.T).T for weight in weights))
        if isinstance(rows.base, Repeated):
            by_view = codes.view(rows.base.number, -1, codes.shape[1])
            return by_view.add_(times(rows.base.part, *weights)).flatten(0, 1)
        return codes.add_(times(rows.base, *weights))
    if isinstance(rows, Repeated):
        return times(rows.part, *weights).repeat(rows.number, 1)
    return rows @ (weights[0] if len(weights) == 1 else torch.cat(weights, 1)).T
