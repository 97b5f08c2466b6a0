"""Workers that die, are told to stop, or are slow; and messages that are not what was due."""

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
from bpfree.schedules import Workers
from bpfree.schedules.links import pack, unpack
from bpfree.schedules.replicas import Replicas
from bpfree.schedules.wires import LinkedWires
from bpfree.trainers import fitting, saving
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
    me, seen = int(torch.distributed.get_rank()), [0]

    def counting(function: Any) -> Any:
        @wraps(function)
        def counted(*args: Any, **named: Any) -> Any:
            if me == rank:
                seen[0] += 1
                if seen[0] == number:
                    os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **named)

        return counted

    if event == "step":
        LinkedWires.begin = counting(LinkedWires.begin)  # type: ignore[method-assign]
    elif event == "validate":
        fitting.validate = counting(fitting.validate)  # type: ignore[attr-defined]
    elif event == "take":
        LinkedWires.from_below = counting(LinkedWires.from_below)  # type: ignore[method-assign]
    elif event == "average":
        Replicas._weighed = counting(Replicas._weighed)  # type: ignore[method-assign]
    else:
        setattr(Workers, event, counting(getattr(Workers, event)))


def noting(path: Path) -> dict[str, Any]:
    """`trained`; which steps were taken is appended to a file of the worker."""
    me, take = int(torch.distributed.get_rank()), LinkedWires.to_above

    def noted(self: LinkedWires, rows: Any) -> None:
        with open(path.with_name(f"steps{me}"), "a") as file:
            file.write(f"{self.index}\n")
        take(self, rows)

    LinkedWires.to_above = noted  # type: ignore[method-assign]
    return trained(path)


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, tensor in expected["weights"].items():
        assert torch.equal(found["weights"][name], tensor), name
    assert found["rows"] == expected["rows"]


@pytest.mark.parametrize(
    ("rank", "event", "number"),
    [(0, "step", 14), (1, "take", 11), (2, "cut", 3), (1, "total", 2), (2, "validate", 1)],
)
def test_a_killed_worker_goes_on_from_its_checkpoint_and_the_others_from_where_they_stood(
    rank: int, event: str, number: int, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    first = Group(tmp_path, 3, dying, path, rank, event, number)
    _, raised = first.results([k for k in range(3) if k != rank])
    assert all("WorkerLost: worker" in error for error in raised.values()), raised
    found = run(tmp_path, 3, noting, path)
    expected = trained(None, "simultaneous")
    for worker in found:
        same(worker, expected)
        assert worker["history"].resumed == 1
    for k in range(3):
        steps = [int(line) for line in (tmp_path / f"steps{k}").read_text().split()]
        again = len(steps) - len(set(steps))
        assert set(steps) == set(range(EPOCHS * STEPS))
        # Nobody else takes a step twice, and the killed one not more than lie between two checkpoints.
        assert again <= (3 if k == rank else 0), (k, steps)
    assert sorted(p.name for p in tmp_path.glob("run*")) == ["run"]


def test_a_finished_run_is_taken_up_as_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "run"
    first = run(tmp_path, 2, trained, path)
    for again in run(tmp_path, 2, trained, path):
        same(again, first[0])


def told(path: Path, **pipeline: Any) -> dict[str, Any]:
    """`trained`, at twenty steps a second at most; the process's number is in a file."""
    (path.with_name(f"pid{torch.distributed.get_rank()}")).write_text(str(os.getpid()))
    begin = LinkedWires.begin

    def slowly(self: LinkedWires, index: int) -> None:
        time.sleep(0.05)
        begin(self, index)

    LinkedWires.begin = slowly  # type: ignore[method-assign]
    return trained(path, **pipeline)


def begun(group: Group, path: Path) -> Group:
    """Wait until the workers of a `told` group are well under way."""
    while not saving.own_path(path, _Rank(1, 2)).exists():  # type: ignore[arg-type]
        time.sleep(0.01)
    time.sleep(0.3)
    return group


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_that_are_told_to_stop_do_and_go_on_later(number: int, tmp_path: Path) -> None:
    path = tmp_path / "run"
    group = begun(Group(tmp_path, 2, told, path), path)
    for rank in range(2):
        group.kill(rank, number)
    _, raised = group.results()
    assert len(raised) == 2
    for found in run(tmp_path, 2, trained, path):
        same(found, trained(None, "simultaneous"))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_worker_that_stalls_is_waited_for(rank: int, tmp_path: Path) -> None:
    path = tmp_path / "run"
    group = begun(Group(tmp_path, 2, told, path), path)
    group.kill(rank, signal.SIGSTOP)
    time.sleep(1.0)
    group.kill(rank, signal.SIGCONT)
    found, raised = group.results()
    assert not raised
    for worker in found.values():
        same(worker, trained(None, "simultaneous"))


def impatient(path: Path, timeout_s: float) -> dict[str, Any]:
    return told(path, timeout_s=timeout_s)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_worker_that_neither_answers_nor_breaks_the_connection_is_given_up(
    rank: int, tmp_path: Path
) -> None:
    path, other = tmp_path / "run", 1 - rank
    group = begun(Group(tmp_path, 2, impatient, path, 2.0), path)
    group.kill(rank, signal.SIGSTOP)
    since = time.monotonic()
    answer, _, error = group.answers.get(timeout=180)
    # It has waited for as long as was said, and then written where it stood.
    assert time.monotonic() - since > 1.5
    assert answer == other
    assert f"WorkerLost: worker {rank} is gone" in error
    group.kill(rank)
    group.results([])
    for found in run(tmp_path, 2, trained, path):
        same(found, trained(None, "simultaneous"))


class _Rank:
    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.label = rank, str(size)


def slow(rank: int) -> dict[str, Any]:
    begin = LinkedWires.begin

    def slowly(self: LinkedWires, index: int) -> None:
        if torch.distributed.get_rank() == rank:
            time.sleep(0.02)
        begin(self, index)

    LinkedWires.begin = slowly  # type: ignore[method-assign]
    return trained(None)


def test_a_slow_worker_changes_nothing_but_the_time(tmp_path: Path) -> None:
    for found in run(tmp_path, 2, slow, 1):
        same(found, trained(None, "simultaneous"))


# ---- refused ---------------------------------------------------------------------------------------------


def test_a_checkpoint_of_other_workers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    Group(tmp_path, 2, dying, path, 0, "step", 8).results([1])
    _, raised = Group(tmp_path, 3, trained, path).results()
    assert all("begun by 2 workers, not 3" in error for error in raised.values())
    with pytest.raises(BadValue, match="begun by 2 workers, not 1"):
        trained(path)
    saving.own_path(path, _Rank(1, 2)).unlink()  # type: ignore[arg-type]
    _, raised = Group(tmp_path, 2, trained, path).results()
    assert all("worker 1 has no checkpoint while others" in error for error in raised.values())


def test_messages_come_back_as_they_were() -> None:
    for rows in (torch.rand(5, 3), torch.rand(2, 3, 4, 4).bfloat16(), torch.tensor(7), torch.rand(4, 6).T):
        message = pack(12, rows, 500)
        found = unpack(message, 12, 0)
        assert found.dtype == rows.dtype
        assert torch.equal(found, rows)
        # As torch aligns its own: on some processors products add up in another order elsewhere.
        assert found.data_ptr() % 64 == rows.clone().data_ptr() % 64 == 0
        assert len(message) == len(pack(13, rows[:1] if rows.ndim else rows, 500))


def test_a_message_that_is_not_due_is_an_error() -> None:
    message = pack(3, torch.rand(4), 16)
    with pytest.raises(_errors.LinkError, match="worker 1 sent step 3 where step 4 was expected: a repeat"):
        unpack(message, 4, 1)
    with pytest.raises(_errors.LinkError, match="worker 1 sent step 3 where step 2 was expected: a gap"):
        unpack(message, 2, 1)
    message[:128].view(torch.int64)[1] = 99
    with pytest.raises(_errors.LinkError, match="a header that cannot be"):
        unpack(message, 3, 1)
    message[:128].view(torch.int64)[1:4] = torch.tensor([0, 1, 5])
    with pytest.raises(_errors.LinkError, match=r"shape \[5\], more than the wire holds"):
        unpack(message, 3, 1)
    with pytest.raises(_errors.LinkError, match=r"shape \[5\] \(20 bytes\) does not fit"):
        pack(3, torch.rand(5), 16)


def skipping() -> Any:
    if torch.distributed.get_rank() == 0:
        from bpfree.schedules.links import Outlet

        send = Outlet.send
        Outlet.send = lambda self, index, rows: send(self, index + (index == 5), rows)  # type: ignore
    return trained(None)


def test_a_gap_on_the_wire_stops_the_run(tmp_path: Path) -> None:
    _, raised = Group(tmp_path, 2, skipping).results()
    assert "LinkError: worker 0 sent step 6 where step 5 was expected: a gap" in raised[1]
    assert "WorkerLost" in raised[0]
