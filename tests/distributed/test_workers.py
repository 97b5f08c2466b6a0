"""A single worker: it trains all blocks on all rows, and adds nothing to a step."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor

import bpfree
from bpfree import MonoForward
from bpfree.distributed.workers import Workers
from bpfree.engine.loop import TrainingLoop
from tests.helpers import make_mlp, vectors


def test_a_single_worker_returns_what_it_is_given() -> None:
    def rows() -> tuple[Tensor, Tensor]:
        return torch.zeros(2), torch.zeros(2)

    def step() -> Tensor:
        return torch.zeros(1)

    workers, sums = Workers(), torch.rand(3)
    assert workers.split_rows(rows, 2) is rows
    assert workers.wrap_step(step, 4) is step
    assert workers.block_range(1, 3) == (1, 3)
    assert workers.reduce_losses(sums) is sums
    assert workers.all_gather("value") == ["value"]
    assert workers.gather_checkpoint({"sums": sums}) == [{"sums": sums}]
    assert workers.is_first
    assert not workers.several
    assert not workers.neighbors.above


def test_a_step_of_a_single_worker_calls_neither_workers_nor_the_state_of_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, take_step = Path(bpfree.__file__).parent, TrainingLoop._step
    calls: list[str] = []

    def profile(frame: FrameType, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(root):
            calls.append(f"{path.relative_to(root).as_posix()}:{frame.f_code.co_name}")

    def profiled(*args: Any) -> Tensor:
        sys.setprofile(profile)
        try:
            return take_step(*args)
        finally:
            sys.setprofile(None)

    monkeypatch.setattr(TrainingLoop, "_step", profiled)
    MonoForward(make_mlp(), progress=False).fit(vectors(40), epochs=1, batch_size=16)
    modules = ("engine/loop", "engine/run_state", "distributed/workers")
    # What is the same for all steps of an epoch is computed once, before them.
    assert [name for name in calls if name.startswith(modules)] == ["engine/loop.py:_step"] * 3
