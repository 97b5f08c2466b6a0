"""Imported by the server of `tests.workers` alone; holds for it and for the processes that it forks."""

from __future__ import annotations

import errno
import os
from multiprocessing import reduction
from typing import Any

_recvfds = reduction.recvfds


def recvfds(*args: Any) -> Any:
    """For a client that is killed while it connects: raises an error that the server ignores."""
    try:
        return _recvfds(*args)
    except EOFError:
        raise OSError(errno.ECONNABORTED, "the client is gone") from None


reduction.recvfds = recvfds
# As in the tests' own process: nothing has to outlive a power cut.
os.fsync = lambda _: None  # type: ignore[assignment]
