"""The arms of the claims about several workers."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.claims._workers import Spec, backprop, command, mono_forward
from benchmarks.claims.kill_a_layer import training
from tests.workers import run

SPEC = Spec(arm="simultaneous", dataset="digits", samples=500, hidden=[16, 16], batch=20, epochs=4)


def test_two_workers_come_to_the_weights_of_one() -> None:
    alone = mono_forward(SPEC)
    for found in run(None, 2, mono_forward, replace(SPEC, arm="pipelined")):
        assert found["weights"] == alone["weights"]
        assert found["accuracy"] == alone["accuracy"]
        assert len(found["epoch_s"]) == 4
    assert mono_forward(replace(SPEC, seed=1))["weights"] != alone["weights"]


@pytest.mark.parametrize("arm", ["gpipe", "1f1b"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_pipeline_of_backpropagation_is_backpropagation(arm: str) -> None:
    alone = backprop(replace(SPEC, arm="backprop"))
    below, above = run(None, 2, backprop, replace(SPEC, arm=arm))
    assert "accuracy" not in below
    # Sums over micro-batches round otherwise: a few test images may be classified differently.
    assert above["accuracy"] == pytest.approx(alone["accuracy"], abs=0.02)
    assert alone["accuracy"] > 0.2


def test_an_arm_of_two_workers_is_started_by_torchrun(tmp_path: Path) -> None:
    assert "torch.distributed.run" in command(replace(SPEC, arm="pipelined"), tmp_path, restarts=3)
    assert "torch.distributed.run" not in command(SPEC, tmp_path)


def test_workers_are_struck_only_while_they_train(tmp_path: Path) -> None:
    sleep = "import subprocess; [p.wait() for p in [subprocess.Popen(['sleep', '60'], env={'RANK': r}) " \
        "for r in '10']]"  # fmt: skip
    parent = subprocess.Popen([sys.executable, "-c", sleep])
    found: Any = None
    try:
        import psutil

        # Between fork and exec a child has its parent's environment.
        while sum("RANK" in child.environ() for child in psutil.Process(parent.pid).children()) < 2:
            pass
        assert training(parent, tmp_path, set()) is None
        children = {int(p.environ()["RANK"]): p.pid for p in psutil.Process(parent.pid).children()}
        for pid in children.values():
            (tmp_path / f"training.{pid}").touch()
        found = training(parent, tmp_path, set())
        assert found == [children[0], children[1]]
        assert training(parent, tmp_path, {children[1]}) is None
    finally:
        for pid in found or []:
            os.kill(pid, 9)
        parent.kill()
        parent.wait()
