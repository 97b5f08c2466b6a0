"""The input of a block: a tensor of rows, or an object that represents rows in a compact form."""

from __future__ import annotations

from typing import overload

from torch import Tensor


class StructuredRows:
    """Rows that are not one tensor: images with several label codes each, or the nodes of a graph."""

    def samples(self, views: int, start: int, stop: int) -> StructuredRows:
        """Return the rows of the samples ``start`` to ``stop - 1``, in all ``views`` views.

        Raises:
            TypeError: If the rows of single samples cannot be selected.
        """
        raise TypeError(f"{type(self).__name__}: the rows of single samples cannot be selected")


#: The input of a block, ``[rows, ...]``.
Rows = Tensor | StructuredRows


@overload
def take_samples(rows: Tensor, views: int, start: int, stop: int) -> Tensor: ...
@overload
def take_samples(rows: Rows, views: int, start: int, stop: int) -> Rows: ...
def take_samples(rows: Rows, views: int, start: int, stop: int) -> Rows:
    """Return the rows of the samples ``start`` to ``stop - 1``.

    Args:
        rows: ``[views * B, ...]``, view by view.
        views: Number of rows per sample.
        start: Index of the first sample.
        stop: Index after the last sample.
    """
    if not isinstance(rows, Tensor):
        return rows.samples(views, start, stop)
    by_view: Tensor = rows.unflatten(0, (views, -1))
    return by_view[:, start:stop].flatten(0, 1)
