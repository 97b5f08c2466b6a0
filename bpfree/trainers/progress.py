"""A progress bar for `Trainer.fit`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bpfree._types import JsonObject

Show = Callable[[int, int, JsonObject], None]


@contextmanager
def progress_bar(title: str, enabled: bool, about: str = "") -> Iterator[Show]:
    """A bar that counts epochs and shows the newest loss and accuracy; silent if not ``enabled``.

    Args:
        title: Text to the left of the bar.
        enabled: Whether anything is printed.
        about: Text that is printed above the bar, and is not removed at the end.
    """
    if not enabled:
        yield lambda done, total, row: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), transient=True) as bar:
        if about:
            bar.console.print(about, markup=False, highlight=False, soft_wrap=True)
        task = bar.add_task(title, total=None, note="")

        def show(done: int, total: int, row: JsonObject) -> None:
            note = f"loss {sum(row['loss']):.4f}"
            for name, value in list(row.get("validation", {}).items())[:1]:
                note += f"  validation {100 * value:.2f} % ({name})"
            bar.update(task, completed=done, total=total, note=note)

        yield show
