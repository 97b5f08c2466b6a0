"""Where features that are kept lie while a run lasts: in memory, or in files that are mapped into it."""

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

#: Rows of nodes that are made at once.
ROWS = 16_384


class Store:
    """Makes the tensors that features are kept in.

    Args:
        folder: Where their files lie; None: they are in memory, on the device that computed them. A file has
            no name from its beginning, so that nothing is left of it once the process lets go of the tensor,
            however the process ends. What is mapped is no part of the memory that the process allocates.

    Raises:
        BadValue: If no file can be made in the folder.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None:
            self._mapped(1)

    def empty(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """A tensor of this shape, with the type of ``like``, to be written into.

        Raises:
            BadValue: If the folder has no room for it.
        """
        size = math.prod(shape) * like.element_size()
        if self.folder is None or size == 0:
            return like.new_empty(shape)
        return torch.frombuffer(self._mapped(size), dtype=like.dtype).view(shape)

    def filled(self, n: int, make: Callable[[slice], Tensor]) -> Tensor:
        """``n`` rows in every view, ``[views, n, ...]``, made some at a time, so that what making them needs
        is never there for all.

        Args:
            n: How many rows there are.
            make: Makes some of them, ``[views, rows, ...]``.

        Raises:
            BadValue: If the folder has no room for them.
        """
        if self.folder is None and n <= ROWS:
            return make(slice(0, n))
        kept = Growing(self, n)
        for start in range(0, n, ROWS):
            kept.add(make(slice(start, min(start + ROWS, n))))
        return kept.whole

    def _mapped(self, size: int) -> mmap.mmap:
        assert self.folder is not None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder, buffering=0) as file:
                _reserve(file.fileno(), size)
                return mmap.mmap(file.fileno(), size)
        except OSError as error:
            needed = f" for {size / 2**20:.1f} MiB of features" if size > 1 else ""
            raise BadValue(
                f"cache_dir = {str(self.folder)!r}: no file can be written there{needed} "
                f"({error.strerror or error}): name a folder on a disk with room, or leave cache_dir out"
            ) from None


def _reserve(file: int, size: int) -> None:
    """Give a new file its length and its room on the disk: a page without room ends the process later."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
        return
    block = bytes(min(size, 2**20))
    for start in range(0, size, len(block)):
        part = block[: size - start]
        if os.write(file, part) < len(part):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Growing:
    """What is kept of all samples, written in place part by part: joining them would hold all of them twice.

    Args:
        store: Where it lies.
        n_samples: How many samples there are.
    """

    def __init__(self, store: Store, n_samples: int) -> None:
        self.store, self.n_samples, self._done = store, n_samples, 0
        self._tensor: Tensor | None = None

    def add(self, part: Tensor) -> None:
        """The next samples' part, ``[views, B, ...]``."""
        if self._tensor is None:
            self._tensor = self.store.empty((len(part), self.n_samples, *part.shape[2:]), part)
        self._tensor[:, self._done : self._done + part.shape[1]] = part
        self._done += part.shape[1]

    @property
    def whole(self) -> Tensor:
        """All parts, ``[views, N, ...]``."""
        assert self._tensor is not None and self._done == self.n_samples
        return self._tensor


def rows_at(kept: Tensor, indices: Tensor, views: Tensor | None = None) -> Tensor:
    """The samples ``indices [B]`` of what is kept, on their device: ``[views, B, ...]``.

    With ``views [V, B]`` given, of each sample those views, ``[V, B, ...]``.
    """
    at = indices.to(kept.device)
    if views is None:
        found = kept[:, at]
    else:
        # One index of whole rows takes a third of the time of `kept[views, at]`.
        rows = views.to(kept.device) * kept.shape[1] + at
        found = kept.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, views.shape)
    return found.to(indices.device)
