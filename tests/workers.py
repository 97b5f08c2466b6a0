"""Runs functions in several processes that form a process group."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

CONTEXT = multiprocessing.get_context("forkserver")
# The last is what DistributedDataParallel imports: some seconds, once instead of in every process.
CONTEXT.set_forkserver_preload(["bpfree", "torch.distributed", "tests.helpers", "torch._dynamo"])


def _run(
    function: Callable[..., Any], args: Sequence[Any], rank: int, n: int, store: str | int, answers: Any
) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.fsync = lambda _: None  # type: ignore[assignment]
    try:
        if isinstance(store, int):
            # As with torchrun: a process group is created where it is needed.
            variables = {"RANK": rank, "WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store}
            os.environ.update({name: str(value) for name, value in variables.items()})
            answers.put((rank, _packed(function(*args)), None))
            assert not dist.is_initialized()
        else:
            dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=n)
            answers.put((rank, _packed(function(*args)), None))
            dist.destroy_process_group()
    except BaseException as error:  # noqa: BLE001 - the test reports every error
        answers.put((rank, None, f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))
        answers.close()
        answers.join_thread()
        os._exit(1)


def _packed(value: Any) -> bytes:
    """As bytes: tensors would be sent as handles to the memory of a process that is about to end."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


class Group:
    """``n`` processes that call ``function(*args)``, each with its rank in the process group.

    Without a folder for the group's store there is no process group, but the variables that torchrun sets.
    """

    def __init__(self, folder: Path | None, n: int, function: Callable[..., Any], *args: Any) -> None:
        self.answers = CONTEXT.Queue()
        store = _free_port() if folder is None else str(folder / f"store{time.monotonic_ns()}")
        self.processes: list[BaseProcess] = [
            CONTEXT.Process(target=_run, args=(function, args, k, n, store, self.answers), daemon=True)
            for k in range(n)
        ]
        for process in self.processes:
            process.start()

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to one of them."""
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def results(self, answering: Sequence[int] | None = None) -> tuple[dict[int, Any], dict[int, str]]:
        """What they returned, and what they raised, by rank; all have ended then."""
        returned: dict[int, Any] = {}
        raised: dict[int, str] = {}
        for _ in range(len(self.processes) if answering is None else len(answering)):
            rank, value, error = self.answers.get(timeout=180)
            if error is None:
                returned[rank] = torch.load(io.BytesIO(value), weights_only=False)
            else:
                raised[rank] = error
        for process in self.processes:
            process.join(timeout=180)
            assert process.exitcode is not None, "a worker did not end"
        return returned, raised


def run(folder: Path | None, n: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What ``n`` processes return, by rank.

    Raises:
        AssertionError: If one of them raised.
    """
    returned, raised = Group(folder, n, function, *args).results()
    assert not raised, raised
    return [returned[rank] for rank in range(n)]
