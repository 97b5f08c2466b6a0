"""Fixtures and hooks for all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# torch is imported late: the controller of pytest-xdist does not need it, and the workers wait for it.
if TYPE_CHECKING:
    from tests.meters.world import World


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Run torch on one thread, which is faster for small networks."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _no_fsync() -> Iterator[None]:
    """Do not wait for the disk when a checkpoint is written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _server() -> None:
    """One server of processes for all tests of a worker, where any of them starts processes."""
    if "tests.workers" in sys.modules:
        sys.modules["tests.workers"].start_server()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    """A clock that the test sets, and the devices that energy meters read."""
    from tests.meters.world import World

    return World(monkeypatch, tmp_path)


#: Files with tests that take seconds each. They come first, so that no worker runs one alone at the end.
LONG = (
    "test_search.py",
    "test_runner.py",
    "test_robustness.py",
    "test_replicas.py",
    "test_pipelined_faults.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def pytest_make_parametrize_id(val: object) -> str | None:
    """A name without a memory address, so that all workers collect the same tests."""
    return type(val).__name__ if " at 0x" in repr(val) else None
