"""Constant sparse matrices."""

from __future__ import annotations

import copy
import warnings
from typing import Any, Self

import torch
from torch import Tensor


class Constant:
    """An object that never changes: ``copy.deepcopy`` returns the object itself."""

    def __deepcopy__(self, _: dict[int, Any]) -> Self:
        return self


class SparseMatrix(Constant):
    """A constant sparse matrix ``[n, m]`` that multiplies dense ones, gradients included.

    Its transpose, which the backward pass needs, is computed once.

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
        self._pointers = row_pointers(self._row, shape[0])
        self._transposed_layout: tuple[Tensor, Tensor, Tensor] | None = None
        self._csr = csr_tensor(self._pointers, self._column, self.value, shape)
        self._transposed: Tensor | None = None

    @classmethod
    def from_dense(cls, dense: Tensor) -> SparseMatrix:
        """The matrix ``dense [n, m]``."""
        row, column = dense.nonzero(as_tuple=True)
        return cls(row, column, dense[row, column], (dense.shape[0], dense.shape[1]))

    def with_values(self, value: Tensor) -> SparseMatrix:
        """The matrix with the entries ``[E]``, in the order of ``self.value``, at the same places."""
        self._layout_of_transpose()
        result = copy.copy(self)
        result.value, result._transposed = value, None
        result._csr = csr_tensor(self._pointers, self._column, value, self.shape)
        return result

    def slice_rows(self, part: slice) -> SparseMatrix:
        """The rows of a slice, ``[rows, m]``."""
        start, stop, _ = part.indices(self.shape[0])
        if stop - start == self.shape[0]:
            return self
        first, last = self._pointers[start].item(), self._pointers[stop].item()
        result = copy.copy(self)
        result.shape, result.value = (stop - start, self.shape[1]), self.value[first:last]
        result._row, result._column = self._row[first:last] - start, self._column[first:last]
        result._pointers = self._pointers[start : stop + 1] - first
        result._transposed_layout = result._transposed = None
        result._csr = csr_tensor(result._pointers, result._column, result.value, result.shape)
        return result

    def select_rows(self, index: Tensor) -> SparseMatrix:
        """The rows at ``index [r]``, ``[r, m]``."""
        first, number = self._pointers[index], self._pointers.diff()[index]
        row = torch.arange(len(index), device=index.device).repeat_interleave(number)
        within = torch.arange(len(row), device=index.device) - (number.cumsum(0) - number)[row]
        entry = first[row] + within
        return SparseMatrix(row, self._column[entry], self.value[entry], (len(index), self.shape[1]))

    def _layout_of_transpose(self) -> tuple[Tensor, Tensor, Tensor]:
        """Positions of the transpose's entries in ``value``, its row pointers and its columns; cached."""
        if self._transposed_layout is None:
            order = torch.argsort(self._column * self.shape[0] + self._row)
            pointers = row_pointers(self._column[order], self.shape[1])
            self._transposed_layout = (order, pointers, self._row[order])
        return self._transposed_layout

    @property
    def transposed(self) -> Tensor:
        """The transpose, as a CSR tensor."""
        if self._transposed is None:
            order, pointers, column = self._layout_of_transpose()
            self._transposed = csr_tensor(pointers, column, self.value[order], self.shape[::-1])
        return self._transposed

    def __matmul__(self, x: Tensor) -> Tensor:
        return _Product.apply(self, x)  # type: ignore[no-any-return]

    def dense(self) -> Tensor:
        """All values, ``[n, m]``."""
        return self._csr.to_dense()


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: SparseMatrix, x: Tensor) -> Tensor:
        ctx.matrix, ctx.dtype = matrix, x.dtype
        # Not every device has products of sparse matrices in half precision.
        with torch.autocast(x.device.type, enabled=False):
            return multiply(matrix._csr, x.to(matrix.value.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        with torch.autocast(grad.device.type, enabled=False):
            result = multiply(ctx.matrix.transposed, grad.to(ctx.matrix.value.dtype).contiguous())
        return None, result.to(ctx.dtype)


def multiply(sparse: Tensor, x: Tensor) -> Tensor:
    """``sparse [n, m]`` times ``x [m, H]``, without a gradient; ``@`` would fill and copy one more tensor."""
    return x.new_empty(len(sparse), x.shape[1]).addmm_(sparse, x, beta=0.0)


def row_pointers(row: Tensor, n: int) -> Tensor:
    """CSR row pointers ``[n + 1]`` of entries with the sorted row numbers ``row [E]``."""
    counts = torch.bincount(row, minlength=n)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def csr_tensor(pointers: Tensor, column: Tensor, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A CSR tensor, without torch's warning that these are in beta state."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.sparse_csr_tensor(pointers, column, value, shape, check_invariants=False)
