"""The devices of `world` as a fixture."""

from pathlib import Path

import pytest

from tests.meters.world import World


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    return World(monkeypatch, tmp_path)
