"""A folder of results: a file with one JSON object per line, which is appended to and never changed."""

from __future__ import annotations

import gzip
import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bpfree._errors import BadValue
from bpfree.bench.files import Mapped
from bpfree.metrics import METRICS, Metric

Row = Mapped

#: The layout of rows that are written, and their possible keys. Rows of schema 1 are read as well.
SCHEMA = 2
KEYS = frozenset({
    "schema", "run_id", "cell_id", "status", "reason", "arm", "trainer", "dataset", "net", "seed",
    "device_seed", "config", "protocol", "tuning", "env", "git", "locality", "method", "metrics", "budget",
    "time", "memory", "flops", "energy", "device", "carbon", "physics", "segments", "weights_sha256", "curve",
})  # fmt: skip

#: Keys of every row, also of a failed one.
NEEDED = frozenset({"cell_id", "status", "seed"})

#: Keys of successful rows that reports need.
REPORTED = ("arm", "config", "env", "locality", "method", "metrics", "time", "budget", "curve")


#: Metrics by the names that rows of schema 1 have for them.
OLD_METRICS = {"accuracy": "accuracy", "roc_auc": "roc_auc", "negative squared error": "mse"}


def upgraded(row: Row) -> Row:
    """A row in the layout of `SCHEMA`.

    Rows of schema 1 store every metric as ``test_accuracy`` and ``val_accuracy``, and the mean squared error
    negated; ``measure`` names it, where there is one.
    """
    metrics = row.get("metrics")
    if row.get("schema", SCHEMA) != 1 or not isinstance(metrics, dict):
        return row
    metrics = dict(metrics)
    old = metrics.pop("measure", "accuracy")
    if old not in OLD_METRICS:
        raise BadValue(f"row {row['cell_id']}: measure = {old!r}: expected one of {', '.join(OLD_METRICS)}")
    metric = METRICS[OLD_METRICS[old]]
    for part in ("test", "val"):
        if f"{part}_accuracy" in metrics:
            metrics[f"{part}_{metric.name}"] = _signed(metric, metrics.pop(f"{part}_accuracy"))
    for part in ("readouts", "blocks"):
        if part in metrics:
            metrics[part] = _signed(metric, metrics[part])
    metrics |= {
        "metric": metric.name,
        "greater_is_better": metric.greater_is_better,
        "share": metric.share,
    }
    curve = [[step, _signed(metric, value), *rest] for step, value, *rest in row.get("curve", [])]
    return {**row, "metrics": metrics} | ({"curve": curve} if "curve" in row else {})


def _signed(metric: Metric, value: Any) -> Any:
    """A value of an old row, or all in a list or mapping, with the metric's own sign."""
    if isinstance(value, dict):
        return {key: _signed(metric, one) for key, one in value.items()}
    if isinstance(value, list):
        return [_signed(metric, one) for one in value]
    return metric.signed(value) if isinstance(value, int | float) else value


def figure(row: Row, *path: str) -> float | None:
    """The number at a path of keys; None if it is not there, or not finite."""
    value: Any = row
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


class Results:
    """The rows in ``folder/results.jsonl``, after those in ``folder/results.jsonl.gz`` if it exists.

    New rows are appended to ``results.jsonl``; the compressed file is never changed.

    Raises:
        BadValue: If the folder cannot be created or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "results.jsonl"
        self.compressed = folder / "results.jsonl.gz"

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Lock the folder for this process, and remove an incomplete last line of a killed process.

        Raises:
            BadValue: If another process has the lock, or the folder cannot be written.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder / ".lock", timeout=0)
        # Only errors of locking are reported as errors of this folder, not those of the enclosed work.
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            remove_incomplete_line(self.path)
        except Timeout:
            raise BadValue(
                f"{self.folder}: another bench is writing there; wait for it or name another --out"
            ) from None
        except OSError as error:
            lock.release()
            raise self._unwritable(error) from None
        try:
            yield
        finally:
            lock.release()

    def _unwritable(self, error: OSError) -> BadValue:
        return BadValue(f"{self.folder}: cannot write results there: {error}")

    def append(self, row: Row) -> None:
        """Append a row; it is on the disk when this returns.

        Raises:
            BadValue: If it cannot be written; the earlier rows are kept.
        """
        line = json.dumps(row, sort_keys=True, allow_nan=False).encode() + b"\n"
        try:
            self._append(line)
        except OSError as error:
            raise self._unwritable(error) from None

    def _append(self, line: bytes) -> None:
        with open(self.path, "ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            try:
                written = file.write(line)
                if written != len(line):
                    raise OSError(f"only {written} of {len(line)} bytes could be written: is the disk full?")
                os.fsync(file.fileno())
            except OSError:
                file.truncate(before)
                raise

    def folder_of(self, cell_id: str) -> Path:
        """The folder for the weights and the checkpoint of a cell; it is created if it is missing.

        Raises:
            BadValue: If it cannot be created.
        """
        folder = self.folder / "cells" / cell_id
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from None
        return folder

    def exists(self) -> bool:
        """Whether there is a file of rows."""
        return self.path.exists() or self.compressed.exists()

    def read(self) -> list[Row]:
        """All rows.

        Raises:
            BadValue: If there are none, a file is damaged, a line is not a row, or both files have a row.
        """
        return [row for path, lines in self._files() for row in _rows(path, lines)]

    def lines(self) -> list[str]:
        """The rows as they are in the files: JSON, a line each.

        Raises:
            BadValue: If there are none, a file is damaged, or both files have a row.
        """
        return [line for _, lines in self._files() for line in lines]

    def _files(self) -> list[tuple[Path, list[str]]]:
        """Each file and its complete lines."""
        paths = [path for path in (self.compressed, self.path) if path.exists()]
        if not paths:
            raise BadValue(f"{self.path}: no such file; a bench writes it with --out {self.folder}")
        files = [(path, _complete_lines(path)) for path in paths]
        if len(files) == 2 and (both := set(files[0][1]) & set(files[1][1])):
            raise BadValue(
                f"{self.folder}: {len(both)} rows are in both {self.compressed.name} and {self.path.name}: "
                "delete one of the two files"
            )
        return files

    def done(self) -> dict[str, Row]:
        """The successful rows by cell id; empty if there is no file yet.

        Raises:
            BadValue: If a cell has two successful rows.
        """
        return successes(self.read(), str(self.path)) if self.exists() else {}


def _complete_lines(path: Path) -> list[str]:
    """The lines of a file; a last line without a line break was never finished and is left out."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            if not content:
                raise EOFError("it is empty")
            content = gzip.decompress(content)
        lines = content.decode("utf-8").split("\n")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadValue(
            f"{path}: not a complete gzip file ({error}): was it cut off? Restore it from a copy"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadValue(f"{path}: cannot be read: {error}") from None
    return [f"{line}\n" for line in lines[:-1]]


def _rows(path: Path, lines: Sequence[str]) -> list[Row]:
    """The rows of a file."""
    try:
        rows = [json.loads(line) for line in lines]
    except json.JSONDecodeError as error:
        raise BadValue(f"{path}: a line is not JSON ({error}): was the file edited?") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not row.keys() >= NEEDED:
            raise BadValue(f"{path}: line {number} is not a row of a bench: was the file edited?")
        strange = sorted(row.keys() - KEYS)
        if strange or row.get("schema", SCHEMA) not in (1, SCHEMA):
            what = f"unknown keys {strange}" if strange else f"schema {row['schema']}, not 1 or {SCHEMA}"
            raise BadValue(f"{path}: line {number}: {what}: written by another version of bpfree?")
    return [upgraded(row) for row in rows]


def successes(rows: Iterable[Row], where: str) -> dict[str, Row]:
    """The successful rows by cell id.

    Raises:
        BadValue: If a cell has two: one run is not two replicates.
    """
    by_id: dict[str, Row] = {}
    for row in rows:
        if row["status"] == "ok":
            if row["cell_id"] in by_id:
                raise BadValue(f"{where}: cell {row['cell_id']} (seed {row['seed']}) has two successful rows")
            by_id[row["cell_id"]] = row
    return by_id


def with_results(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The paths with results, and the existing paths without, as a shell pattern may give them; all paths as
    folders if none has results, or one does not exist."""
    with_rows = [path for path in paths if Results(path).exists()]
    other = [path for path in paths if path not in with_rows and path.exists()]
    complete = len(with_rows) + len(other) == len(paths)
    return (with_rows, other) if with_rows and complete else (list(paths), [])


def read_all(folders: Sequence[Path]) -> tuple[list[Row], list[str]]:
    """The rows of all folders, and notes on rows that were skipped: of a cell that succeeded in several
    folders the row in the first of them is used.

    Raises:
        BadValue: If a folder cannot be read or is given twice, a row lacks a key of `REPORTED`, or a cell has
            two successful rows in one folder.
    """
    rows: list[Row] = []
    done: dict[str, Path] = {}
    repeated: dict[tuple[Path, Path], int] = {}
    for folder in folders:
        of_folder = Results(folder).read()
        for row in of_folder:
            lacking = [key for key in REPORTED if key not in row] if row["status"] == "ok" else []
            if lacking:
                where = f"{folder}: row {row['cell_id']}"
                raise BadValue(f"{where} has no {', '.join(lacking)}: was the file edited?")
        for cell_id, row in successes(of_folder, str(folder)).items():
            first = done.setdefault(cell_id, folder)
            if first is not folder and first.resolve() == folder.resolve():
                raise BadValue(
                    f"{folder} is given twice: cell {cell_id} (seed {row['seed']}) has two successful rows"
                )
            if first is not folder:
                repeated[first, folder] = repeated.get((first, folder), 0) + 1
        rows += [row for row in of_folder if row["status"] != "ok" or done[row["cell_id"]] is folder]
    notes = [
        f"{count} cells of {folder} are in {first} as well and are read from there"
        for (first, folder), count in repeated.items()
    ]
    return rows, notes


def comparable(row: Row) -> Row:
    """The part of a row that is equal in two runs of its cell on one machine: no times, no process memory."""
    shared = {k: v for k, v in row.items() if k not in ("time", "segments", "run_id")}
    return shared | {
        "curve": [point[:2] for point in row["curve"]],
        "memory": {k: v for k, v in row["memory"].items() if k != "rss"},
        "protocol": {k: v for k, v in row["protocol"].items() if k not in ("started", "jobs", "cooldown_s")},
    }


def remove_incomplete_line(path: Path) -> None:
    """Remove an incomplete last line of a killed process; no other process may be writing."""
    if path.exists():
        content = path.read_bytes()
        complete = content.rfind(b"\n") + 1
        if complete < len(content):
            os.truncate(path, complete)
