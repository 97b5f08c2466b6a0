"""Prepare folders of rows for publication: compress the rows, and write the table that they give.

    python -m benchmarks [FOLDER ...]   # by default all folders of rows in benchmarks/results

Each folder then holds ``results.jsonl.gz`` and ``table.md``, the output of ``python -m bpfree.bench report``.
"""

from __future__ import annotations

import argparse
import gzip
import io
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks._record import RESULTS
from bpfree._errors import BadValue
from bpfree.bench.results import Results, Row
from bpfree.bench.table import show

#: Columns of a table before it is split into several.
WIDTH = 180


def compress(results: Results) -> None:
    """Move all rows into ``results.jsonl.gz``; the same rows give the same bytes."""
    content = gzip.compress("".join(results.lines()).encode(), mtime=0)
    replace(results.compressed, content)
    results.path.unlink(missing_ok=True)


def table(folder: Path, rows: Sequence[Row]) -> str:
    """The rows as text: versions and machines, then the tables of the report."""
    output = io.StringIO()
    show(rows, Console(file=output, width=WIDTH, color_system=None))
    lines = (line.rstrip() for line in output.getvalue().splitlines())
    done = [row for row in rows if row["status"] == "ok"]
    facts = {
        "rows": f"{len(rows)}, of which {len(rows) - len(done)} failed",
        "bpfree": names(f"{row['env']['bpfree']} (source {row['env']['source']})" for row in done),
        "torch": names(row["env"]["torch"] for row in done),
        "machine": names(f"{row['env']['cpu']}, {row['env']['threads']} threads" for row in done),
    }
    listed = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    command = f"python -m bpfree.bench report {folder}"
    return "\n".join([f"# {folder.name}", "", f"`{command}`", "", listed, "", "```", *lines, "```", ""])


def names(values: Iterable[str]) -> str:
    """The different values, in order."""
    return ", ".join(dict.fromkeys(values)) or "unknown"


def replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Compress and summarize; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", type=Path, nargs="*", metavar="FOLDER")
    folders = parser.parse_args(argv).folders or sorted(f for f in RESULTS.glob("*") if Results(f).exists())
    try:
        for folder in folders:
            results = Results(folder)
            with results.writing():
                rows = results.read()
                compress(results)
                absolute = folder.resolve()
                root = RESULTS.parents[1].resolve()
                shown = absolute.relative_to(root) if absolute.is_relative_to(root) else folder
                replace(folder / "table.md", table(shown, rows).encode())
    except BadValue as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
