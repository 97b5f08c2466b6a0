"""How a running bench shows itself: a bar in a terminal, a line per cell elsewhere. Both on stderr."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bpfree.bench.config import Cell
from bpfree.bench.results import Row
from bpfree.bench.runner import Watcher


@contextmanager
def watching(cells: Sequence[Cell]) -> Iterator[Watcher]:
    """A watcher for these cells."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        total = bar.add_task("cells", total=len(cells))
        tasks = {}

        def started(cell: Cell) -> None:
            tasks[cell.id] = bar.add_task(f"{cell.arm}, seed {cell.seed}", total=None)

        def progress(cell: Cell, done: int, of: int) -> None:
            bar.update(tasks[cell.id], completed=done, total=of)

        def finished(cell: Cell, row: Row) -> None:
            bar.remove_task(tasks[cell.id])
            bar.advance(total)
            if not console.is_terminal:
                accuracy = row.get("metrics", {}).get("test_accuracy")
                note = "" if accuracy is None else f" {100 * accuracy:.2f} %"
                console.print(
                    f"{cell.arm}, seed {cell.seed}: {row['status']}{note}", highlight=False, soft_wrap=True
                )

        yield Watcher(started, progress, finished)
