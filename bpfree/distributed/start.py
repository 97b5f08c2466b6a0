"""How a pipelined run finds its workers: the processes that torchrun, or the script, has started."""

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
from bpfree.distributed.pipelined import Workers
from bpfree.distributed.replicas import check_replicas
from bpfree.distributed.workers import Crew, Pipeline

#: Numbers of the runs of this process that have made a process group.
_RUNS = count()


def n_workers() -> int:
    """How many processes there are: of the process group, or as torchrun tells."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


@cache
def _rendezvous() -> Any:
    """The store that torchrun has told of, this worker's rank, and the number of workers."""
    from torch.distributed.rendezvous import rendezvous

    return next(rendezvous("env://"))


@contextmanager
def crew(schedule: str, pipeline: Pipeline, device: torch.device) -> Iterator[Crew]:
    """The workers of a run: one, or under the pipelined schedule as many as there are processes.

    A process group is made, and ended, where there is none.
    """
    if schedule == "pipelined":
        check_replicas(pipeline.replicas, n_workers())
    if schedule != "pipelined" or n_workers() == 1:
        yield Crew()
        return
    own = not dist.is_initialized()
    if own:
        from torch.distributed.distributed_c10d import PrefixStore

        store, rank, size = _rendezvous()
        # Each run has names of its own in the store, and so has each start by torchrun, which may keep it: a
        # worker must not meet the addresses of workers that are gone.
        start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = PrefixStore(f"bpfree/{start}/{next(_RUNS)}", store)
        timeout = timedelta(seconds=pipeline.timeout_s)
        dist.init_process_group("gloo", timeout=timeout, store=store, rank=rank, world_size=size)
    workers: Workers | None = None
    try:
        with told_to_stop() as stopped:
            workers = Workers(pipeline, device, stopped)
            yield workers
    finally:
        if workers is not None:
            workers.close()
        if own:
            dist.destroy_process_group()


@contextmanager
def told_to_stop() -> Iterator[Callable[[], None]]:
    """Inside, SIGTERM is only noted, and what is given here raises `WorkerLost` from then on."""
    told: list[int] = []

    def check() -> None:
        if told:
            raise WorkerLost("this worker was told to stop (SIGTERM)")

    if threading.current_thread() is not threading.main_thread():
        yield check  # a signal handler belongs to the main thread
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    try:
        yield check
    finally:
        signal.signal(signal.SIGTERM, before)
