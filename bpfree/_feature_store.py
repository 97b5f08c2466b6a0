"""Memory for cached features: tensors in memory, or in memory-mapped files."""

from __future__ import annotations

import errno
import math
import mmap
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bpfree._errors import BadValue

#: Rows of nodes that are computed at once.
ROWS = 16_384


class Store:
    """Allocates the tensors of cached features.

    Args:
        folder: Folder of memory-mapped files; None: the tensors are in memory, on the device that computed
            the features. The files have no name, so the system deletes them when the tensor is deleted or
            the process ends. Mapped files do not count as memory that the process allocates.

    Raises:
        BadValue: If no file can be created in the folder.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None:
            self._map_file(1)

    def empty(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return an uninitialized tensor of this shape with the dtype of ``like``.

        Raises:
            BadValue: If the disk is full.
        """
        size = math.prod(shape) * like.element_size()
        if self.folder is None or size == 0:
            return like.new_empty(shape)
        return torch.frombuffer(self._map_file(size), dtype=like.dtype).view(shape)

    def filled(self, n: int, make: Callable[[slice], Tensor]) -> Tensor:
        """Return a tensor ``[views, n, ...]`` whose rows are computed in parts, to limit temporary memory.

        Args:
            n: Number of rows.
            make: Computes the rows of a slice, ``[views, rows, ...]``.

        Raises:
            BadValue: If the disk is full.
        """
        if self.folder is None and n <= ROWS:
            return make(slice(0, n))
        buffer = RowBuffer(self, n)
        for start in range(0, n, ROWS):
            buffer.append(make(slice(start, min(start + ROWS, n))))
        return buffer.tensor

    def _map_file(self, size: int) -> mmap.mmap:
        assert self.folder is not None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder, buffering=0) as file:
                _reserve(file.fileno(), size)
                return mmap.mmap(file.fileno(), size)
        except OSError as error:
            purpose = f" for {size / 2**20:.1f} MiB of features" if size > 1 else ""
            raise BadValue(
                f"cache_dir = {str(self.folder)!r}: no file can be written there{purpose} "
                f"({error.strerror or error}); use a folder on a disk with free space, or omit cache_dir"
            ) from None


def _reserve(file: int, size: int) -> None:
    """Set the size of a new file and allocate its disk space.

    Without allocated space, a write to the mapped memory would end the process.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
        return
    block = bytes(min(size, 2**20))
    for start in range(0, size, len(block)):
        zeros = block[: size - start]
        if os.write(file, zeros) < len(zeros):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class RowBuffer:
    """A tensor for all samples that is written part by part, without a copy of the whole.

    Args:
        store: Allocates the tensor.
        n_samples: Number of samples N.
    """

    def __init__(self, store: Store, n_samples: int) -> None:
        self.store, self.n_samples, self._written = store, n_samples, 0
        self._tensor: Tensor | None = None

    def append(self, part: Tensor) -> None:
        """Write the rows of the next samples, ``[views, B, ...]``."""
        if self._tensor is None:
            self._tensor = self.store.empty((len(part), self.n_samples, *part.shape[2:]), part)
        self._tensor[:, self._written : self._written + part.shape[1]] = part
        self._written += part.shape[1]

    @property
    def tensor(self) -> Tensor:
        """The rows of all samples, ``[views, N, ...]``. All samples must have been written."""
        assert self._tensor is not None and self._written == self.n_samples
        return self._tensor


def select_samples(stored: Tensor, indices: Tensor, views: Tensor | None = None) -> Tensor:
    """Return the rows of some samples, on the device of ``indices``.

    Args:
        stored: Rows of all samples, ``[views, N, ...]``.
        indices: The samples, ``[B]``.
        views: For each sample, the indices of the views to return, ``[V, B]``; by default all.

    Returns:
        ``[views, B, ...]``, or ``[V, B, ...]`` if ``views`` is given.
    """
    samples = indices.to(stored.device)
    if views is None:
        selected = stored[:, samples]
    else:
        # One index of whole rows takes a third of the time of `stored[views, samples]`.
        rows = views.to(stored.device) * stored.shape[1] + samples
        selected = stored.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, views.shape)
    return selected.to(indices.device)
