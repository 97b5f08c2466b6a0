"""Runs cells, each in a process of its own, and writes their rows as they come."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any

from bpfree._errors import BadValue
from bpfree.bench import cell as cell_module
from bpfree.bench.cells import Cell
from bpfree.bench.results import Results, Row

#: Bytes of a temporary folder in which multiprocessing can make its sockets: its names take 32 of the 103
#: that every system grants, and where there are more, what to use instead.
LONGEST_FOLDER = 70
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


@dataclass
class Watcher:
    """Who is told how the cells get on."""

    started: Callable[[Cell], None] = lambda cell: None
    progress: Callable[[Cell, int, int], None] = lambda cell, done, of: None
    finished: Callable[[Cell, Row], None] = lambda cell, row: None


@dataclass
class Running:
    """A cell at work."""

    cell: Cell
    process: BaseProcess
    pipe: Connection
    lifeline: Connection
    since: datetime
    begun: float = field(default_factory=time.monotonic)

    def ends(self, limit_s: float) -> float:
        """Seconds until it has taken ``limit_s``."""
        return self.begun + limit_s - time.monotonic()


def run(
    cells: Sequence[Cell],
    results: Results,
    jobs: int = 1,
    checkpoint_s: float = 20.0,
    watcher: Watcher | None = None,
    cooldown_s: float = 0.0,
    limit_s: float | None = None,
) -> list[Row]:
    """Run the cells that have no row yet, and return the rows of all, in the order of ``cells``.

    A cell that fails or dies takes none along: its row says what happened, and the next run tries it again.
    A run that was killed, or a cell whose time was up, goes on from its last checkpoint.

    Args:
        cells: What to run.
        results: The folder to write to.
        jobs: How many cells at once; more than one shares the machine, so compare no times then.
        checkpoint_s: Seconds between checkpoints within a cell.
        watcher: Who is told.
        cooldown_s: Seconds of rest between one cell and the next.
        limit_s: Seconds that a cell may take; None: as long as it wants.

    Raises:
        BadValue: If a cell cannot be run because of what it asks for, or the folder cannot be used.
    """
    watcher = watcher or Watcher()
    if cooldown_s and jobs > 1:
        raise BadValue(
            f"a rest of {cooldown_s} s between cells means nothing while {jobs} of them run at once"
        )
    if jobs > 1 and any(cell.energy is not None for cell in cells):
        raise BadValue(f"energy: {jobs} cells at once would be charged for each other's joules; use --jobs 1")
    with results.writing():
        rows = results.done()
        pending = [cell for cell in cells if cell.id not in rows]
        running: list[Running] = []
        worked = False

        def end(one: Running, row: Row) -> None:
            running.remove(one)
            close(one)
            row["run_id"] = f"{one.cell.id}-{one.since:%Y%m%dT%H%M%S}"
            row["protocol"] = _protocol(one, jobs, cooldown_s)
            results.append(row)
            rows[one.cell.id] = row
            watcher.finished(one.cell, row)

        try:
            start_server(pending)
            _check(pending)
            while pending or running:
                while pending and len(running) < jobs:
                    if worked:
                        time.sleep(cooldown_s)
                    worked = True
                    cell = pending.pop(0)
                    folder = results.folder_of(cell.id)
                    running.append(start(cell_module.run, cell, folder, checkpoint_s))
                    watcher.started(cell)
                left = None if limit_s is None else max(0.0, min(r.ends(limit_s) for r in running))
                for pipe in wait([one.pipe for one in running], left):
                    one = next(r for r in running if r.pipe is pipe)
                    row = receive(one, watcher.progress)
                    if row is not None:
                        end(one, row)
                for one in [r for r in running if limit_s is not None and r.ends(limit_s) <= 0]:
                    one.process.kill()
                    end(
                        one, cell_module.failed(one.cell.record(), "timeout", f"not done after {limit_s:g} s")
                    )
        finally:
            for one in running:
                one.process.kill()
                close(one)
    return [rows[cell.id] for cell in cells]


def start_server(cells: Sequence[Cell]) -> None:
    """Start the fork server with Ctrl-C ignored: it would die of it in the middle of its imports.

    It imports what these cells need. One that runs already is left as it is: cells import what it lacks.
    """
    own = dict.fromkeys(module for cell in cells for module in cell.dataset.preload)
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["bpfree.bench.cell", *own, "bpfree.bench.preload"]
    )
    _shorten_temporary_folder()
    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    try:
        forkserver.ensure_running()
    except OSError as error:
        raise BadValue(
            f"the processes of the cells cannot be started, with temporary files in {tempfile.gettempdir()}: "
            f"{error}"
        ) from None
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)


def _shorten_temporary_folder() -> None:
    """Have multiprocessing put its sockets elsewhere where the temporary folder has a long name: the name of
    a socket may have about a hundred bytes.
    """
    usual = tempfile.gettempdir()
    if len(os.fsencode(usual)) <= LONGEST_FOLDER:
        return
    for folder in SHORT_FOLDERS:
        if os.access(folder, os.W_OK | os.X_OK):
            tempfile.tempdir = folder
            try:
                get_temp_dir()  # made now, and used by this process from now on
            finally:
                tempfile.tempdir = usual
            return


def _check(pending: Sequence[Cell]) -> None:
    """Have a process build the trainer of each arm; what else it might die of, the cell itself will tell."""
    arms = {json.dumps({**cell.record(), "seed": 0}): cell for cell in reversed(pending)}.values()
    if not arms:
        return
    one = _spawn(next(iter(arms)), cell_module.check, [cell.record() for cell in arms])
    try:
        kind, message = one.pipe.recv()
    except EOFError:
        return
    finally:
        close(one)
    assert kind == "refused"
    raise BadValue(message)


def start(job: cell_module.Job, cell: Cell, folder: Path, checkpoint_s: float) -> Running:
    """Start a job on a cell in a process of its own; `start_server` must have been called."""
    folder.mkdir(parents=True, exist_ok=True)
    return _spawn(cell, cell_module.main, job, cell.record(), str(folder), checkpoint_s)


def _spawn(cell: Cell, target: Callable[..., None], *args: Any) -> Running:
    """Start ``target(*args, pipe, lifeline)`` in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    lifeline_end, lifeline = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(*args, theirs, lifeline_end), name=cell.arm)
    process.start()
    theirs.close()
    lifeline_end.close()
    return Running(cell, process, ours, lifeline, datetime.now(UTC))


def receive(one: Running, progress: Callable[..., None]) -> Row | None:
    """Take one message, handing reports to ``progress``; returns the cell's row once there is one.

    Raises:
        BadValue: If the cell cannot do what was asked of it.
    """
    try:
        kind, *content = one.pipe.recv()
    except EOFError:
        one.process.join()
        code = one.process.exitcode or 0
        cause = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return cell_module.failed(one.cell.record(), "error", f"the cell's process was {cause}")
    if kind == "progress":
        progress(one.cell, *content)
        return None
    if kind == "refused":
        raise BadValue(content[0])
    row: dict[str, Any] = content[0]
    return row


def _protocol(one: Running, jobs: int, cooldown_s: float) -> Row:
    """What a row is there for, and the conditions under which it came about."""
    conditions = {"started": one.since.isoformat(timespec="seconds"), "jobs": jobs, "cooldown_s": cooldown_s}
    if one.cell.matched is not None:
        return {"id": "B", "matched_passes": one.cell.matched, "targets": [*one.cell.targets], **conditions}
    own = "fixed" if one.cell.fit.patience is None else "A"
    return {"id": own, "targets": [*one.cell.targets], **conditions}


def close(one: Running) -> None:
    """Wait for the process, and let go of it."""
    one.process.join()
    one.pipe.close()
    one.lifeline.close()
