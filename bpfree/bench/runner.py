"""Runs cells, each in a process of its own, and writes each row when its cell ends."""

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
from bpfree.bench.files import Mapped
from bpfree.bench.results import Results, Row

#: Longest name of a temporary folder for the sockets of multiprocessing, in bytes: their own names take 32 of
#: the 103 that every system allows. A longer one is replaced by the first writable one of `SHORT_FOLDERS`.
LONGEST_FOLDER = 70
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


@dataclass
class Callbacks:
    """Functions that `run` calls when a cell starts, makes progress, and ends."""

    started: Callable[[Cell], None] = lambda cell: None
    progress: Callable[[Cell, int, int], None] = lambda cell, done, of: None
    finished: Callable[[Cell, Row], None] = lambda cell, row: None


@dataclass
class Running:
    """A cell in a running process."""

    cell: Cell
    process: BaseProcess
    pipe: Connection
    lifeline: Connection
    since: datetime
    begun: float = field(default_factory=time.monotonic)

    def ends(self, limit_s: float) -> float:
        """Seconds until it has run for ``limit_s``."""
        return self.begun + limit_s - time.monotonic()


def run(
    cells: Sequence[Cell],
    results: Results,
    jobs: int = 1,
    checkpoint_s: float = 20.0,
    callbacks: Callbacks | None = None,
    cooldown_s: float = 0.0,
    limit_s: float | None = None,
) -> list[Row]:
    """Run the cells that have no row yet, and return the rows of all, in the order of ``cells``.

    A cell that fails or is killed does not stop the others: its row has the reason, and the next run tries it
    again. A killed run, or a cell that reached its time limit, continues from its last checkpoint.

    Args:
        cells: What to run.
        results: The folder to write to.
        jobs: Number of cells at once; several share the machine, so their times cannot be compared.
        checkpoint_s: Seconds between checkpoints within a cell.
        callbacks: Functions to call.
        cooldown_s: Seconds of idling between two cells.
        limit_s: Maximal seconds of a cell; None: no limit.

    Raises:
        BadValue: If a setting of a cell is bad, or the folder cannot be used.
    """
    callbacks = callbacks or Callbacks()
    if cooldown_s and jobs > 1:
        raise BadValue(
            f"cooldown of {cooldown_s} s between cells has no effect with {jobs} jobs at once: use --jobs 1"
        )
    if jobs > 1 and any(cell.energy is not None for cell in cells):
        raise BadValue(f"energy: {jobs} cells at once cannot be metered separately; use --jobs 1")
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
            callbacks.finished(one.cell, row)

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
                    callbacks.started(cell)
                timeout_s = None if limit_s is None else max(0.0, min(r.ends(limit_s) for r in running))
                for pipe in wait([one.pipe for one in running], timeout_s):
                    one = next(r for r in running if r.pipe is pipe)
                    row = receive(one, callbacks.progress)
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
    """Start the fork server, which imports what these cells need, with Ctrl-C ignored during its imports.

    A running server is not changed: cells import what it has not.
    """
    modules = dict.fromkeys(module for cell in cells for module in cell.dataset.preload)
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["bpfree.bench.cell", *modules, "bpfree.bench.preload"]
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
    """Use another folder for multiprocessing's sockets if the temporary folder has a long name: the name of a
    socket may have about a hundred bytes.
    """
    usual = tempfile.gettempdir()
    if len(os.fsencode(usual)) <= LONGEST_FOLDER:
        return
    for folder in SHORT_FOLDERS:
        if os.access(folder, os.W_OK | os.X_OK):
            tempfile.tempdir = folder
            try:
                get_temp_dir()  # multiprocessing creates it now, and caches it
            finally:
                tempfile.tempdir = usual
            return


def _check(pending: Sequence[Cell]) -> None:
    """Build the trainer of each arm in a process; other errors are reported by the cells."""
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


def start(run_cell: cell_module.CellFunction, cell: Cell, folder: Path, checkpoint_s: float) -> Running:
    """Start a function of a cell in a process of its own; `start_server` must be called before."""
    folder.mkdir(parents=True, exist_ok=True)
    return _spawn(cell, cell_module.main, run_cell, cell.record(), str(folder), checkpoint_s)


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
    """Receive one message; a progress report is passed to ``progress``, a row is returned.

    Raises:
        BadValue: If a setting of the cell is bad.
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
    row: Mapped = content[0]
    return row


def _protocol(one: Running, jobs: int, cooldown_s: float) -> Row:
    """The section ``protocol`` of a row: its protocol, and the conditions of the run."""
    conditions = {"started": one.since.isoformat(timespec="seconds"), "jobs": jobs, "cooldown_s": cooldown_s}
    if one.cell.matched is not None:
        return {"id": "B", "matched_passes": one.cell.matched, "targets": [*one.cell.targets], **conditions}
    name = "fixed" if one.cell.fit.patience is None else "A"
    return {"id": name, "targets": [*one.cell.targets], **conditions}


def close(one: Running) -> None:
    """Wait for the process, and close its connections."""
    one.process.join()
    one.pipe.close()
    one.lifeline.close()
