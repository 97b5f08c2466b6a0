"""Cached features on disk: equal to those in memory, deleted after the run, with clear errors."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from bpfree import (
    BadValue,
    CascadedForward,
    Checkpoint,
    ForwardForward,
    ForwardGNN,
    Hooks,
    MonoForward,
    RandomFeatures,
    Trainer,
    _feature_store,
)
from bpfree._feature_store import RowBuffer, Store
from bpfree.meters import allocated_on_cpu
from bpfree.testing import assert_resumes
from bpfree.testing._common import assert_same_bits, assert_same_history
from bpfree.trainers import History
from tests.helpers import images, make_cnn, make_gnn, make_mlp, nodes, pairs, vectors

TRAINERS: dict[str, Callable[[], Trainer]] = {
    "blocks": lambda: MonoForward(make_mlp(16, 16, 16), schedule="greedy", progress=False),
    "pairs, and outputs for a classifier": lambda: ForwardForward(
        make_mlp(), schedule="greedy", redraw_negatives=False, progress=False
    ),
    "outputs of a front": lambda: RandomFeatures(make_mlp(), schedule="greedy", progress=False),
    "features for readouts": lambda: CascadedForward(make_cnn(), progress=False),
}


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the files with cached features."""
    sizes: list[int] = []
    original = Store._map_file

    def spy(self: Store, size: int) -> Any:
        sizes.append(size)
        return original(self, size)

    monkeypatch.setattr(Store, "_map_file", spy)
    return sizes


GRAPHS: dict[str, dict[str, Any]] = {
    "gcn": {},
    "sage": {"kind": "sage"},
    "gat": {"kind": "gat"},
    "both ways": {"direction": "both_ways"},
    "prototypes": {"learnable_prototypes": True},
    "labels as features": {"variant": "label_appending"},
    "labels as edges": {"variant": "virtual_nodes"},
    "links": {"variant": "link"},
}


def on_graph(kind: Any = "gcn", hidden: tuple[int, ...] = (16, 16, 16), **settings: Any) -> ForwardGNN:
    return ForwardGNN(make_gnn(kind, hidden), progress=False, **settings)


@pytest.mark.parametrize("batch_size", [16, 1000])
@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_on_disk_equals_one_in_memory(
    name: str, batch_size: int, tmp_path: Path, mapped: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_feature_store, "ROWS", 7)
    links = name == "links"
    data, other = (pairs(), pairs(seed=1)) if links else (nodes(), nodes(seed=1))
    validation = other.take(torch.arange(15, 25))
    memory, disk = on_graph(**GRAPHS[name]), on_graph(**GRAPHS[name])

    def fit(trainer: ForwardGNN, **options: Any) -> History:
        with pytest.warns(UserWarning, match="validation edges") if links else nullcontext():
            return trainer.fit(data, validation, epochs=2, batch_size=batch_size, **options)

    in_memory = fit(memory)
    assert not mapped
    on_disk = fit(disk, cache_dir=tmp_path)
    assert_same_bits(disk.cascade, memory.cascade, name)
    assert_same_history(on_disk, in_memory, name)
    # At least the input states of the upper two layers, for training and validation.
    assert sum(size >= 60 * 16 * 4 for size in mapped) >= 4
    assert not os.listdir(tmp_path) and not deleted_files(tmp_path)
    # Features computed in parts equal those computed at once.
    monkeypatch.undo()
    at_once = fit(on_graph(**GRAPHS[name]))
    for actual, expected in zip(at_once.rows, in_memory.rows, strict=True):
        assert actual["loss"] == pytest.approx(expected["loss"], rel=1e-4)


def test_a_graph_on_disk_needs_memory_for_a_few_rows_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_feature_store, "ROWS", 100)
    n, width = 3000, 512
    data, size = nodes(n, width), n * width * 4
    peaks = []
    for folder in (None, tmp_path):
        trainer = on_graph(hidden=(64, 64, 64))
        trainer.build_for(data)  # type: ignore[arg-type]
        with allocated_on_cpu() as meter:
            trainer.fit(data, epochs=1, batch_size=1000, cache_dir=folder)
        peaks.append(meter.peak_bytes)
    memory, disk = peaks
    # The remaining memory is the features concatenated with those of the virtual nodes.
    assert memory > 3 * size and disk < 1.5 * size, (memory / size, disk / size)


def test_a_graph_on_a_full_disk_is_a_clear_error(tmp_path: Path, small_disk: int) -> None:
    data = nodes(2000)
    trainer = on_graph()
    with pytest.raises(BadValue, match=r"0\.1 MiB of features .*omit cache_dir"):
        trainer.fit(data, epochs=1, batch_size=1000, cache_dir=tmp_path)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", TRAINERS)
def test_a_run_on_disk_equals_one_in_memory(name: str, tmp_path: Path, mapped: list[int]) -> None:
    data = (images if name.startswith("features") else vectors)(37)
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 16}
    memory, disk = TRAINERS[name](), TRAINERS[name]()
    in_memory = memory.fit(data, data, **settings)
    assert not mapped
    on_disk = disk.fit(data, data, cache_dir=tmp_path / "new" / "folder", **settings)
    assert_same_bits(disk.cascade, memory.cascade, name)
    assert_same_history(on_disk, in_memory, name)
    # The features of training and validation, for 37 samples each.
    assert sum(size >= 37 * 16 * 4 for size in mapped) >= 2


def test_files_have_no_name_and_are_deleted_after_the_run(tmp_path: Path) -> None:
    listed: list[list[str]] = []

    def record(*_: Any) -> None:
        listed.append(os.listdir(tmp_path))

    trainer = TRAINERS["blocks"]()
    trainer.fit(vectors(), epochs=1, cache_dir=tmp_path, hooks=Hooks(progress=record))
    assert listed == [[]] * 3 and not os.listdir(tmp_path)
    assert not deleted_files(tmp_path)


def test_a_failed_run_leaves_no_files(tmp_path: Path) -> None:
    maps: list[int] = []

    def fail(done: int, *_: Any) -> None:
        if done == 2:
            maps.extend(deleted_files(tmp_path))
            raise RuntimeError("stopped in the second block")

    with pytest.raises(RuntimeError, match="second block"):
        TRAINERS["blocks"]().fit(vectors(), epochs=1, cache_dir=tmp_path, hooks=Hooks(progress=fail))
    assert maps, "the features of the first block were not on the disk"
    assert not os.listdir(tmp_path) and not deleted_files(tmp_path)


def deleted_files(folder: Path) -> list[int]:
    """Start addresses of this process's memory maps of files in a folder."""
    if sys.platform != "linux":
        pytest.skip("needs /proc")
    import gc

    gc.collect()
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [int(line.split("-")[0], 16) for line in lines if str(folder) in line]


def test_a_run_on_disk_can_be_resumed(tmp_path: Path) -> None:
    assert_resumes(
        TRAINERS["blocks"], vectors(20), tmp_path / "states", epochs=1, batch_size=16,
        cache_dir=tmp_path / "features",
    )  # fmt: skip


def test_a_run_can_be_resumed_with_another_cache_dir(tmp_path: Path) -> None:
    def fail(done: int, *_: Any) -> None:
        if done == 2:
            raise RuntimeError("stopped")

    uninterrupted, resumed = TRAINERS["blocks"](), TRAINERS["blocks"]()
    uninterrupted.fit(vectors(), epochs=1)
    every_step = Checkpoint(tmp_path / "run", every_s=0)
    with pytest.raises(RuntimeError, match="stopped"):
        TRAINERS["blocks"]().fit(vectors(), epochs=1, checkpoint=every_step, hooks=Hooks(progress=fail))
    history = resumed.fit(vectors(), epochs=1, checkpoint=tmp_path / "run", cache_dir=tmp_path / "features")
    assert history.resumed == 1
    assert_same_bits(resumed.cascade, uninterrupted.cascade, "moved features")


# ---- errors ----------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_is_an_error_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    trainer = TRAINERS["blocks"]()
    with pytest.raises(BadValue, match=r"cache_dir = .*file.*: no file can be written there"):
        trainer.fit(vectors(), cache_dir=tmp_path / "file" / "folder")
    with pytest.raises(BadValue, match="has not been built"):
        _ = trainer.cascade


@pytest.fixture(params=[True, False], ids=["fallocate", "zeros"])
def small_disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Largest possible file size in bytes, with and without ``posix_fallocate``."""
    if not request.param:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    yield 2**16
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_an_error_and_never_a_bus_error(tmp_path: Path, small_disk: int) -> None:
    store = Store(tmp_path)
    assert store.empty((small_disk // 4,), torch.zeros(1)).fill_(1.0).sum() == small_disk // 4
    with pytest.raises(BadValue, match=r"0\.1 MiB of features .*omit cache_dir"):
        store.empty((small_disk // 4 + 1,), torch.zeros(1))
    assert not os.listdir(tmp_path)


def test_a_row_buffer_is_available_when_all_samples_are_written(tmp_path: Path) -> None:
    for store in (Store(), Store(tmp_path)):
        buffer, rows = RowBuffer(store, 5), torch.rand(2, 5, 3).to(torch.bfloat16)
        buffer.append(rows[:, :4])
        with pytest.raises(AssertionError):
            _ = buffer.tensor
        buffer.append(rows[:, 4:])
        assert torch.equal(buffer.tensor, rows) and buffer.tensor.dtype == torch.bfloat16
