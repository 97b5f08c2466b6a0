"""Starts the workers of a run: the processes that torchrun, or the user's script, has created."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from itertools import count
from typing import Any

import torch
import torch.distributed as dist

from bpfree._errors import WorkerLost
from bpfree.distributed.pipelined import PipelinedWorkers
from bpfree.distributed.replicas import check_replicas
from bpfree.distributed.workers import Pipeline, Workers

#: Numbers of the runs of this process that have created a process group.
_RUNS = count()


def n_workers() -> int:
    """Number of processes: of the process group if there is one, otherwise as torchrun has set it."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


@cache
def _rendezvous() -> Any:
    """The store that torchrun has set, the rank of this worker, and the number of workers."""
    from torch.distributed.rendezvous import rendezvous

    return next(rendezvous("env://"))


@contextmanager
def start_workers(schedule: str, pipeline: Pipeline, device: torch.device) -> Iterator[Workers]:
    """The workers of a run: one, or with the pipelined schedule as many as there are processes.

    Where there is no process group, one is created, and destroyed at the end.
    """
    if schedule == "pipelined":
        check_replicas(pipeline.replicas, n_workers())
    if schedule != "pipelined" or n_workers() == 1:
        yield Workers()
        return
    create = not dist.is_initialized()
    if create:
        _create_process_group(pipeline.timeout_s)
    workers: PipelinedWorkers | None = None
    try:
        with catch_sigterm() as check_stop:
            workers = PipelinedWorkers(pipeline, device, check_stop)
            yield workers
    finally:
        if workers is not None:
            workers.close()
        if create:
            dist.destroy_process_group()


def _create_process_group(timeout_s: float) -> None:
    from torch.distributed.distributed_c10d import PrefixStore

    store, rank, size = _rendezvous()
    # Each run has a prefix of its own in the store, and so has each start by torchrun, which may reuse the
    # store: a worker must not find the addresses of workers that are gone.
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"bpfree/{start}/{next(_RUNS)}", store)
    timeout = timedelta(seconds=timeout_s)
    dist.init_process_group("gloo", timeout=timeout, store=store, rank=rank, world_size=size)


@contextmanager
def catch_sigterm() -> Iterator[Callable[[], None]]:
    """Catch SIGTERM inside; the function in the context raises `WorkerLost` once one has been received."""
    received: list[int] = []

    def check_stop() -> None:
        if received:
            raise WorkerLost("this worker was stopped (SIGTERM)")

    if threading.current_thread() is not threading.main_thread():
        yield check_stop  # only the main thread can set a signal handler
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield check_stop
    finally:
        signal.signal(signal.SIGTERM, before)
