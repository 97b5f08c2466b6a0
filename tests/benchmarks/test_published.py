"""Published rows are compressed without loss, and each folder has a table that anybody can read."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks._record import RESULTS
from bpfree.bench.results import Results, read_all
from tests.bench.rows import arm

# A source distribution has no results.
FOLDERS = sorted(folder for folder in RESULTS.glob("*") if Results(folder).exists())


def written(folder: Path) -> Results:
    results = Results(folder)
    with results.writing():
        for row in arm("mono_forward", [0.9, 0.91, 0.92]):
            results.append(row)
    return results


def test_rows_are_compressed_without_loss_and_in_the_same_bytes_each_time(tmp_path: Path) -> None:
    results = written(tmp_path / "rows")
    rows, lines = results.read(), results.lines()
    assert command.main([str(results.folder)]) == 0
    assert not results.path.exists()
    assert results.read() == rows
    assert results.lines() == lines
    content = results.compressed.read_bytes(), (results.folder / "table.md").read_bytes()
    assert command.main([str(results.folder)]) == 0
    assert (results.compressed.read_bytes(), (results.folder / "table.md").read_bytes()) == content
    assert "mono_forward" in content[1].decode()
    assert "91.00 ± " in content[1].decode()


def test_rows_that_were_added_later_join_the_compressed_ones(tmp_path: Path) -> None:
    results = written(tmp_path / "rows")
    assert command.main([str(results.folder)]) == 0
    with results.writing():
        results.append(arm("backprop", [0.95])[0])
    assert command.main([str(results.folder)]) == 0
    assert [row["arm"] for row in results.read()] == ["mono_forward"] * 3 + ["backprop"]
    assert not results.path.exists()


def test_damaged_rows_are_refused_and_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = written(tmp_path / "rows")
    command.compress(results)
    damaged = results.compressed.read_bytes()[:-1]
    results.compressed.write_bytes(damaged)
    assert command.main([str(results.folder)]) == 2
    assert "not a complete gzip file" in capsys.readouterr().err
    assert results.compressed.read_bytes() == damaged


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_published_folder_has_compressed_rows_and_their_table(folder: Path) -> None:
    assert {path.name for path in folder.iterdir() if path.suffix in (".jsonl", ".gz", ".md")} == {
        "results.jsonl.gz",
        "table.md",
    }
    rows, notes = read_all([folder])
    assert notes == []
    table = (folder / "table.md").read_text()
    assert f"- rows: {len(rows)}, " in table
    for name in {row["arm"] for row in rows}:
        assert all(word in table for word in name.split()), name
