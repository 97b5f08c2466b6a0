"""Runs functions in processes that are forked from one server, which has imported what they need."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

CONTEXT = multiprocessing.get_context("forkserver")
#: Modules that the server imports once, instead of every process, which takes some seconds.
PRELOAD = [
    "torch.distributed",
    "bpfree.bench.__main__",
    "bpfree.bench.cell",
    "bpfree.bench.preload",
    "tests.helpers",
    "tests.workers",
    "tests.server",
]


def start_server() -> None:
    """Start the server, if there is none. The cells of a benchmark are forked from the same server.

    Ctrl-C is ignored while it starts, as in `bpfree.bench.runner.start_server`.
    """
    CONTEXT.set_forkserver_preload(PRELOAD)
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, handler)


def start_command(main: Callable[[Sequence[str]], int], arguments: Sequence[str], log: Path) -> BaseProcess:
    """Run a command line in its own process and session, without further imports.

    Its cells are forked from the server of this process. Its output is written to ``log``.
    """
    process = CONTEXT.Process(target=_command, args=(main, arguments, str(log)))
    start_server()
    process.start()
    return process


def _command(main: Callable[[Sequence[str]], int], arguments: Sequence[str], log: str) -> None:
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    # The process uses the server that it was forked from.
    forkserver.ensure_running = forkserver._forkserver.ensure_running = lambda: None  # type: ignore[attr-defined]
    sys.exit(main(arguments))


def _run(
    function: Callable[..., Any], args: Sequence[Any], rank: int, n: int, store: str | int, queue: Any
) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if isinstance(store, int):
            # As with torchrun: a process group is created where it is needed.
            variables = {"RANK": rank, "WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store}
            os.environ.update({name: str(value) for name, value in variables.items()})
            queue.put((rank, _packed(function(*args)), None))
            assert not dist.is_initialized()
        else:
            dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=n)
            queue.put((rank, _packed(function(*args)), None))
            dist.destroy_process_group()
    except BaseException as error:  # noqa: BLE001 - the test reports every error
        queue.put((rank, None, f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))
        queue.close()
        queue.join_thread()
        os._exit(1)


def _packed(value: Any) -> bytes:
    """The value as bytes. Tensors would be sent as handles to the memory of a process that ends."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Group:
    """``n`` processes that call ``function(*args)``, each with its rank in the process group.

    Without a folder for the group's store, the variables that torchrun sets are set, and there is no group.
    """

    def __init__(self, folder: Path | None, n: int, function: Callable[..., Any], *args: Any) -> None:
        self.queue = CONTEXT.Queue()
        store = _free_port() if folder is None else str(folder / f"store{time.monotonic_ns()}")
        self.processes: list[BaseProcess] = [
            CONTEXT.Process(target=_run, args=(function, args, k, n, store, self.queue), daemon=True)
            for k in range(n)
        ]
        start_server()
        for process in self.processes:
            process.start()

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to one of them."""
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def results(self, ranks: Sequence[int] | None = None) -> tuple[dict[int, Any], dict[int, str]]:
        """Wait for the processes to end; returns their results, and their errors, by rank."""
        returned: dict[int, Any] = {}
        raised: dict[int, str] = {}
        for _ in range(len(self.processes) if ranks is None else len(ranks)):
            rank, value, error = self.queue.get(timeout=180)
            if error is None:
                returned[rank] = torch.load(io.BytesIO(value), weights_only=False)
            else:
                raised[rank] = error
        for process in self.processes:
            process.join(timeout=180)
            assert process.exitcode is not None, "a worker did not end"
        return returned, raised


def run(folder: Path | None, n: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """The results of ``n`` processes, by rank.

    Raises:
        AssertionError: If one of them raised.
    """
    returned, raised = Group(folder, n, function, *args).results()
    assert not raised, raised
    return [returned[rank] for rank in range(n)]
