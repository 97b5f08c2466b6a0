"""Progress of a running bench on stderr: a bar in a terminal, otherwise a line per cell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

from bpfree.bench.cells import Cell
from bpfree.bench.metric import metric_of
from bpfree.bench.results import Row
from bpfree.bench.runner import Callbacks
from bpfree.bench.terminal import console, label_column, visible


@contextmanager
def progress_display(cells: Sequence[Cell]) -> Iterator[Callbacks]:
    """Callbacks that show the progress of these cells."""
    screen = console(stderr=True)
    columns = (label_column(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        total = bar.add_task("cells", total=len(cells))
        tasks = {}

        def started(cell: Cell) -> None:
            tasks[cell.id] = bar.add_task(f"{visible(cell.arm)}, seed {cell.seed}", total=None)

        def progress(cell: Cell, done: int, of: int) -> None:
            bar.update(tasks[cell.id], completed=done, total=of)

        def finished(cell: Cell, row: Row) -> None:
            bar.remove_task(tasks[cell.id])
            bar.advance(total)
            if not screen.is_terminal:
                metric = metric_of(row)
                value = metric.test(row)
                note = "" if value is None else f" {metric.text(value)}"
                screen.print(f"{visible(cell.arm)}, seed {cell.seed}: {row['status']}{note}", soft_wrap=True)

        yield Callbacks(started, progress, finished)
