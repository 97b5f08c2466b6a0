"""Rows are appended completely or not at all, and never lost."""

from __future__ import annotations

import gzip
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from bpfree import BadValue
from bpfree.bench import results as module
from bpfree.bench.results import Results

ROW = {"cell_id": "a", "status": "ok", "seed": 0}


def test_rows_come_back_in_order(tmp_path: Path) -> None:
    results = Results(tmp_path / "new" / "folder")
    with results.writing():
        results.append(ROW)
        results.append({"cell_id": "b", "status": "error", "seed": 1})
    assert [row["cell_id"] for row in results.read()] == ["a", "b"]
    assert list(results.done()) == ["a"]


def test_an_incomplete_line_is_removed_and_the_others_stay(tmp_path: Path) -> None:
    results = Results(tmp_path)
    with results.writing():
        results.append(ROW)
    with open(results.path, "a") as file:
        file.write('{"cell_id": "b", "sta')
    assert len(results.read()) == 1
    with results.writing():
        results.append({"cell_id": "c", "status": "ok", "seed": 2})
    assert [row["cell_id"] for row in results.read()] == ["a", "c"]


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with (
        Results(tmp_path).writing(),
        pytest.raises(BadValue, match="another bench"),
        Results(tmp_path).writing(),
    ):
        pass


def test_the_same_cell_twice_is_refused(tmp_path: Path) -> None:
    results = Results(tmp_path)
    with results.writing():
        results.append(ROW)
        results.append(ROW)
    with pytest.raises(BadValue, match="twice"):
        results.done()


def test_an_edited_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text("not json\n")
    with pytest.raises(BadValue, match="not JSON"):
        Results(tmp_path).read()


@pytest.mark.parametrize(
    ("change", "named"), [({"test_acuracy": 0.9}, "test_acuracy"), ({"schema": 3}, "schema 3, not 1 or 2")]
)
def test_a_row_of_another_layout_is_refused(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    lines = [ROW, {**ROW, "cell_id": "b", **change}]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(BadValue, match=f"line 2: .*{named}"):
        Results(tmp_path).read()


def test_a_full_disk_leaves_the_earlier_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = Results(tmp_path)
    with results.writing():
        results.append(ROW)

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            return super().write(bytes(data)[:5])

    monkeypatch.setattr(module, "open", lambda path, mode, buffering: Full(path, mode), raising=False)
    with pytest.raises(BadValue, match="is the disk full"), results.writing():
        results.append({"cell_id": "b", "status": "ok", "seed": 1})
    monkeypatch.undo()
    assert results.path.read_bytes().endswith(b"}\n")
    assert [row["cell_id"] for row in results.read()] == ["a"]


def test_a_folder_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadValue, match="cannot write results"), Results(tmp_path / "file").writing():
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_read_only_folder_is_a_clear_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(BadValue, match="cannot write results"), Results(tmp_path / "new").writing():
        pass


def test_nan_never_becomes_a_row(tmp_path: Path) -> None:
    results = Results(tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"), results.writing():
        results.append({**ROW, "value": float("nan")})
    assert not results.path.exists()


OTHER = {"cell_id": "b", "status": "error", "seed": 1, "reason": "a line\u2028break"}


def compressed(folder: Path, *rows: dict[str, Any]) -> bytes:
    """Write the rows into a compressed file; returns its content."""
    content = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    (folder / "results.jsonl.gz").write_bytes(content)
    return content


def test_compressed_rows_are_the_same_rows(tmp_path: Path) -> None:
    plain, packed = Results(tmp_path / "plain"), Results(tmp_path / "packed")
    with plain.writing():
        plain.append(ROW)
        plain.append(OTHER)
    packed.folder.mkdir()
    packed.compressed.write_bytes(gzip.compress(plain.path.read_bytes()))
    assert packed.read() == plain.read() == [ROW, OTHER]
    assert packed.lines() == plain.lines()
    assert packed.done() == plain.done()
    folders = [plain.folder, packed.folder]
    assert module.with_results([*folders, tmp_path]) == (folders, [tmp_path])


def test_new_rows_follow_the_compressed_ones(tmp_path: Path) -> None:
    before = compressed(tmp_path, ROW)
    results = Results(tmp_path)
    with results.writing():
        assert list(results.done()) == ["a"]
        results.append(OTHER)
    assert results.read() == [ROW, OTHER]
    assert results.compressed.read_bytes() == before


def test_a_row_in_both_files_is_refused(tmp_path: Path) -> None:
    compressed(tmp_path, ROW, OTHER)
    (tmp_path / "results.jsonl").write_text(json.dumps(ROW) + "\n")
    with pytest.raises(BadValue, match=r"1 rows are in both .*: delete one of the two files"):
        Results(tmp_path).read()


def test_a_damaged_compressed_file_is_refused_at_every_length(tmp_path: Path) -> None:
    content = compressed(tmp_path, ROW, OTHER)
    flipped = content[:-8] + bytes([content[-8] ^ 1]) + content[-7:]
    for damaged in [*(content[:n] for n in range(len(content))), flipped, content + b"more", b"plain text"]:
        (tmp_path / "results.jsonl.gz").write_bytes(damaged)
        with pytest.raises(BadValue, match="not a complete gzip file"):
            Results(tmp_path).read()


def test_an_edited_compressed_file_is_refused(tmp_path: Path) -> None:
    compressed(tmp_path, ROW, {**OTHER, "test_acuracy": 0.9})
    with pytest.raises(BadValue, match=r"results.jsonl.gz: line 2: unknown keys \['test_acuracy'\]"):
        Results(tmp_path).read()
