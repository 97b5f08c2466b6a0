"""Workers that die, are stopped, or are slow; and messages that are not the expected ones."""

from __future__ import annotations

import os
import signal
import time
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch

from bpfree import BadValue, MonoForward, _errors
from bpfree.distributed.links import Sender, pack, unpack
from bpfree.distributed.neighbors import LinkedNeighbors
from bpfree.distributed.pipelined import PipelinedWorkers
from bpfree.distributed.replicas import Replicas
from bpfree.engine import loop as fitting
from bpfree.engine import saving
from tests.helpers import easy, make_mlp, snapshot
from tests.workers import Group, run

EPOCHS, STEPS = 3, 7


def trained(path: Path | None, schedule: str = "pipelined", **pipeline: Any) -> dict[str, Any]:
    trainer = MonoForward(make_mlp(16, 16, 16, 16), lr=0.01, schedule=schedule, progress=False)
    history = trainer.fit(
        easy(100), easy(60, seed=1), epochs=EPOCHS, batch_size=16, checkpoint=path,
        pipeline={"save_every": 3, "queue": 1, **pipeline},
    )  # fmt: skip
    return {"weights": snapshot(trainer.cascade), "rows": history.rows, "history": history}


def dying(path: Path, rank: int, event: str, number: int) -> dict[str, Any]:
    """`trained`, in which worker ``rank`` kills itself at the ``number``-th ``event``; steps are noted."""
    mortal(rank, event, number)
    return noting(path)


def mortal(rank: int, event: str, number: int) -> None:
    """From now on, worker ``rank`` kills itself at the ``number``-th ``event``."""
    me, calls = int(torch.distributed.get_rank()), [0]

    def counting(function: Any) -> Any:
        @wraps(function)
        def counted(*args: Any, **named: Any) -> Any:
            if me == rank:
                calls[0] += 1
                if calls[0] == number:
                    os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **named)

        return counted

    if event == "step":
        LinkedNeighbors.begin_step = counting(LinkedNeighbors.begin_step)  # type: ignore[method-assign]
    elif event == "validate":
        fitting.validate = counting(fitting.validate)  # type: ignore[attr-defined]
    elif event == "take":
        LinkedNeighbors.receive_inputs = counting(LinkedNeighbors.receive_inputs)  # type: ignore[method-assign]
    elif event == "average":
        Replicas._weighted_sum = counting(Replicas._weighted_sum)  # type: ignore[method-assign]
    else:
        setattr(PipelinedWorkers, event, counting(getattr(PipelinedWorkers, event)))


def noting(path: Path) -> dict[str, Any]:
    """`trained`; which steps were taken is appended to a file of the worker."""
    me, take = int(torch.distributed.get_rank()), LinkedNeighbors.send_outputs

    def noted(self: LinkedNeighbors, rows: Any) -> None:
        with open(path.with_name(f"steps{me}"), "a") as file:
            file.write(f"{self.index}\n")
        take(self, rows)

    LinkedNeighbors.send_outputs = noted  # type: ignore[method-assign]
    return trained(path)


def same(result: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, tensor in expected["weights"].items():
        assert torch.equal(result["weights"][name], tensor), name
    assert result["rows"] == expected["rows"]


@pytest.mark.parametrize(
    ("rank", "event", "number"),
    [(0, "step", 14), (1, "take", 11), (2, "synchronize", 3), (1, "reduce_losses", 2), (2, "validate", 1)],
)
def test_a_killed_worker_resumes_from_its_checkpoint_and_the_others_from_their_positions(
    rank: int, event: str, number: int, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    first = Group(tmp_path, 3, dying, path, rank, event, number)
    _, raised = first.results([k for k in range(3) if k != rank])
    assert all("WorkerLost: worker" in error for error in raised.values()), raised
    results = run(tmp_path, 3, noting, path)
    expected = trained(None, "simultaneous")
    for worker in results:
        same(worker, expected)
        assert worker["history"].resumed == 1
    for k in range(3):
        steps = [int(line) for line in (tmp_path / f"steps{k}").read_text().split()]
        again = len(steps) - len(set(steps))
        assert set(steps) == set(range(EPOCHS * STEPS))
        # Nobody else takes a step twice, and the killed one not more than lie between two checkpoints.
        assert again <= (3 if k == rank else 0), (k, steps)
    assert sorted(p.name for p in tmp_path.glob("run*")) == ["run"]


def test_a_finished_run_is_loaded_as_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "run"
    first = run(tmp_path, 2, trained, path)
    for again in run(tmp_path, 2, trained, path):
        same(again, first[0])


def delayed(path: Path, **pipeline: Any) -> dict[str, Any]:
    """`trained`, at twenty steps a second at most; the process's number is in a file."""
    (path.with_name(f"pid{torch.distributed.get_rank()}")).write_text(str(os.getpid()))
    begin = LinkedNeighbors.begin_step

    def slowly(self: LinkedNeighbors, index: int) -> None:
        time.sleep(0.05)
        begin(self, index)

    LinkedNeighbors.begin_step = slowly  # type: ignore[method-assign]
    return trained(path, **pipeline)


def begun(group: Group, path: Path) -> Group:
    """Wait until the workers of a `delayed` group are well under way."""
    while not saving.worker_path(path, _Rank(1, 2)).exists():  # type: ignore[arg-type]
        time.sleep(0.01)
    time.sleep(0.3)
    return group


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_that_receive_a_signal_stop_and_can_be_resumed(number: int, tmp_path: Path) -> None:
    path = tmp_path / "run"
    group = begun(Group(tmp_path, 2, delayed, path), path)
    for rank in range(2):
        group.kill(rank, number)
    _, raised = group.results()
    assert len(raised) == 2
    for result in run(tmp_path, 2, trained, path):
        same(result, trained(None, "simultaneous"))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_worker_that_stalls_is_waited_for(rank: int, tmp_path: Path) -> None:
    path = tmp_path / "run"
    group = begun(Group(tmp_path, 2, delayed, path), path)
    group.kill(rank, signal.SIGSTOP)
    time.sleep(1.0)
    group.kill(rank, signal.SIGCONT)
    results, raised = group.results()
    assert not raised
    for worker in results.values():
        same(worker, trained(None, "simultaneous"))


def impatient(path: Path, timeout_s: float) -> dict[str, Any]:
    return delayed(path, timeout_s=timeout_s)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_worker_that_neither_responds_nor_closes_the_connection_counts_as_lost(
    rank: int, tmp_path: Path
) -> None:
    path, other = tmp_path / "run", 1 - rank
    group = begun(Group(tmp_path, 2, impatient, path, 2.0), path)
    group.kill(rank, signal.SIGSTOP)
    since = time.monotonic()
    rank_of_answer, _, error = group.queue.get(timeout=180)
    # It has waited for the timeout, and then saved its state.
    assert time.monotonic() - since > 1.5
    assert rank_of_answer == other
    assert f"WorkerLost: worker {rank} is gone" in error
    group.kill(rank)
    group.results([])
    for result in run(tmp_path, 2, trained, path):
        same(result, trained(None, "simultaneous"))


class _Rank:
    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.label = rank, str(size)


def slow(rank: int) -> dict[str, Any]:
    begin = LinkedNeighbors.begin_step

    def slowly(self: LinkedNeighbors, index: int) -> None:
        if torch.distributed.get_rank() == rank:
            time.sleep(0.02)
        begin(self, index)

    LinkedNeighbors.begin_step = slowly  # type: ignore[method-assign]
    return trained(None)


def test_a_slow_worker_changes_nothing_but_the_time(tmp_path: Path) -> None:
    for result in run(tmp_path, 2, slow, 1):
        same(result, trained(None, "simultaneous"))


# ---- refused ---------------------------------------------------------------------------------------------


def test_a_checkpoint_of_other_workers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    Group(tmp_path, 2, dying, path, 0, "step", 8).results([1])
    _, raised = Group(tmp_path, 3, trained, path).results()
    assert all("begun by 2 workers, not 3" in error for error in raised.values())
    with pytest.raises(BadValue, match="begun by 2 workers, not 1"):
        trained(path)
    saving.worker_path(path, _Rank(1, 2)).unlink()  # type: ignore[arg-type]
    _, raised = Group(tmp_path, 2, trained, path).results()
    assert all("worker 1 has no checkpoint while others" in error for error in raised.values())


def test_messages_are_unpacked_as_they_were_packed() -> None:
    for rows in (torch.rand(5, 3), torch.rand(2, 3, 4, 4).bfloat16(), torch.tensor(7), torch.rand(4, 6).T):
        message = pack(12, rows, 500)
        tensor = unpack(message, 12, 0)
        assert tensor.dtype == rows.dtype
        assert torch.equal(tensor, rows)
        # As torch aligns its own: on some processors products add up in another order elsewhere.
        assert tensor.data_ptr() % 64 == rows.clone().data_ptr() % 64 == 0
        assert len(message) == len(pack(13, rows[:1] if rows.ndim else rows, 500))


def test_an_unexpected_message_is_an_error() -> None:
    message = pack(3, torch.rand(4), 16)
    with pytest.raises(_errors.LinkError, match="worker 1 sent step 3 where step 4 was expected: a repeat"):
        unpack(message, 4, 1)
    with pytest.raises(_errors.LinkError, match="worker 1 sent step 3 where step 2 was expected: a gap"):
        unpack(message, 2, 1)
    message[:128].view(torch.int64)[1] = 99
    with pytest.raises(_errors.LinkError, match="an invalid header"):
        unpack(message, 3, 1)
    message[:128].view(torch.int64)[1:4] = torch.tensor([0, 1, 5])
    with pytest.raises(_errors.LinkError, match=r"shape \[5\], larger than the link"):
        unpack(message, 3, 1)
    with pytest.raises(_errors.LinkError, match=r"shape \[5\] \(20 bytes\) does not fit"):
        pack(3, torch.rand(5), 16)


def skipping() -> Any:
    if torch.distributed.get_rank() == 0:
        send = Sender.send
        Sender.send = lambda self, index, rows: send(self, index + (index == 5), rows)  # type: ignore
    return trained(None)


def test_a_gap_on_a_link_stops_the_run(tmp_path: Path) -> None:
    _, raised = Group(tmp_path, 2, skipping).results()
    assert "LinkError: worker 0 sent step 6 where step 5 was expected: a gap" in raised[1]
    assert "WorkerLost" in raised[0]
