"""What every test runs under."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.meters.world import World


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny nets are quicker on one thread, and the tests leave the machine to others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Thousands of checkpoints are written here, and none has to outlive a power cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    """A clock that is moved by hand, and the devices that energy meters ask."""
    return World(monkeypatch, tmp_path)


def pytest_make_parametrize_id(val: object) -> str | None:
    """A name without an address, so that parallel workers agree on which tests there are."""
    return type(val).__name__ if " at 0x" in repr(val) else None
