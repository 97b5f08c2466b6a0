"""The pipelined schedule against the simultaneous one: the same bits, by any number of workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import bpfree
from bpfree import CascadedForward, CounterCurrentLearning, ForwardForward, MonoForward, Trainer
from tests.helpers import easy, make_mlp, snapshot
from tests.workers import run


def make(kind: str, schedule: str, **settings: Any) -> Trainer:
    common = {"schedule": schedule, "progress": False, **settings}
    net = make_mlp(16, 16, 16, 16)
    if kind == "dropout":
        layers = [m for stage in net for m in (stage, torch.nn.Dropout(0.3))][:-1]
        return MonoForward(torch.nn.Sequential(*layers), lr=0.01, **common)
    if kind == "mono_forward":
        return MonoForward(net, lr=0.01, **common)
    if kind == "forward_forward":
        return ForwardForward(net, readout="goodness", classifier=False, **common)
    if kind == "cafo":
        return CascadedForward(net, lr=0.01, **common)
    if kind == "closed_form":
        return CascadedForward(net, predictor="closed_form", lam=[0.01], **common)
    assert kind == "counter_current"
    return CounterCurrentLearning(net, lr=0.5, **common)


def fitted(kind: str, schedule: str, **fit: Any) -> dict[str, Any]:
    # 100 samples end in a batch of 4.
    trainer = make(kind, schedule)
    history = trainer.fit(easy(100), easy(60, seed=1), **{"epochs": 3, "batch_size": 16, **fit})
    test = trainer.evaluate(easy(60, seed=2))
    return {"weights": snapshot(trainer.cascade), "rows": history.rows, "stages": history.stages, "test": test}


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, tensor in expected["weights"].items():
        assert torch.equal(found["weights"][name], tensor), name
    assert {k: v for k, v in found.items() if k != "weights"} == {
        k: v for k, v in expected.items() if k != "weights"
    }


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["mono_forward", "forward_forward", "cafo", "closed_form", "dropout"])
def test_workers_give_the_bits_of_the_simultaneous_schedule(kind: str, n: int, tmp_path: Path) -> None:
    expected = fitted(kind, "simultaneous")
    for found in run(tmp_path, n, fitted, kind, "pipelined"):
        same(found, expected)
