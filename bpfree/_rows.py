"""The input of a block: a tensor of rows, or an object that stands for rows and is not multiplied out."""

from __future__ import annotations

from typing import overload

from torch import Tensor


class StructuredRows:
    """Rows that are not one tensor: images under several label codes, or the nodes of a graph."""

    def samples(self, views: int, start: int, stop: int) -> StructuredRows:
        """The rows of the samples ``start`` to ``stop - 1``, in each of ``views`` views.

        Raises:
            TypeError: If single samples cannot be taken out.
        """
        raise TypeError(f"{type(self).__name__} has no samples that can be taken out")


#: What a block takes as its input, ``[rows, ...]``.
Rows = Tensor | StructuredRows


@overload
def take_samples(rows: Tensor, views: int, start: int, stop: int) -> Tensor: ...
@overload
def take_samples(rows: Rows, views: int, start: int, stop: int) -> Rows: ...
def take_samples(rows: Rows, views: int, start: int, stop: int) -> Rows:
    """The rows of the samples ``start`` to ``stop - 1``.

    Args:
        rows: ``[views * B, ...]``, view by view.
        views: How many rows each sample has.
        start: The first sample.
        stop: One past the last.
    """
    if not isinstance(rows, Tensor):
        return rows.samples(views, start, stop)
    by_view: Tensor = rows.unflatten(0, (views, -1))
    return by_view[:, start:stop].flatten(0, 1)
