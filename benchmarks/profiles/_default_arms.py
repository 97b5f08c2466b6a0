"""Small nets of the default suite, and what a training step of them takes: Python calls and time.

Run as a script at one revision, it measures one arm for each line of its input, see `serve`. It uses the
public interface and `STEPS` alone, so that the same file runs at an older and at a newer revision.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import bpfree
from bpfree import physics
from bpfree.nn import GNN, mlp, physical_net

#: Where the method is that takes a training step: module, class, name. The first one that exists is used.
STEPS = (
    ("bpfree.engine.loop", "TrainingLoop", "_step"),
    ("bpfree.trainers.fitting", "Fit", "_step"),
)

#: Steps at the start of each training that are not timed.
WARM_UP = 2


@dataclass(frozen=True)
class Arm:
    """One arm of the default suite.

    Attributes:
        trainer: Id of the trainer.
        settings: Settings of the trainer.
        net: Key of `NETS`.
        batch_size: Samples of a step.
        epochs: Epochs that are timed at once.
    """

    trainer: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    net: str = "mlp"
    batch_size: int = 64
    epochs: int = 2


COSINE = {"lr_schedule": "cosine"}
ARMS = {
    "mono_forward": Arm("mono_forward", {"lr": 5.2e-2, **COSINE}),
    "mono_forward greedy": Arm("mono_forward", {"lr": 9.9e-2, "schedule": "greedy", **COSINE}),
    "forward_forward": Arm("forward_forward", {"lr": 3.4e-4, "optimizer": "adam"}),
    "counter_current": Arm("counter_current", {"lr": 1.3, "momentum": 0.9}),
    "physical": Arm(
        "physical",
        {"lr": 1.8e-3, "theta": 5.0, "inner_steps": 5, "cache": True},
        net="physical",
        batch_size=256,
        epochs=8,
    ),
    "forward_gnn": Arm("forward_gnn", {"lr": 8.4e-2}, net="gcn", batch_size=2000, epochs=20),
}


def _physical() -> torch.nn.Module:
    fibre = getattr(physics, "MultimodeFiber", None) or physics.MultimodeFibre
    system = fibre(grid=20, mask_radius=8.0, pool=1, input_range=(-1.0, 1.0), dtype=torch.float32)
    return physical_net([physics.Device(system)] * 2, (1, 8, 8), 10, [100], "picture", False, "l2")


NETS: dict[str, Callable[[], torch.nn.Module]] = {
    "mlp": lambda: mlp([64, 256, 256, 10]),
    "physical": _physical,
    "gcn": lambda: GNN("gcn", [64, 64]),
}


def make(name: str) -> Callable[..., Any]:
    """A function that trains a new net of the arm for a number of epochs; later calls train it further."""
    arm = ARMS[name]
    torch.manual_seed(0)
    trainer = bpfree.get_trainer(arm.trainer)(NETS[arm.net](), seed=0, progress=False, **arm.settings)
    data: Any = bpfree.data.load_graph("digits_graph") if arm.net == "gcn" else bpfree.data.load("digits")

    def train(epochs: int) -> None:
        trainer.fit(data.train, data.validation, epochs=epochs, batch_size=arm.batch_size, eval_every=epochs)

    return train


def find_step() -> tuple[type, str]:
    """The class and the name of the method that takes a training step."""
    for module, kind, name in STEPS:
        try:
            found = getattr(importlib.import_module(module), kind)
        except (ImportError, AttributeError):
            continue
        if hasattr(found, name):
            return found, name
    raise SystemExit(f"{bpfree.__file__}: no method of STEPS exists: add the one that takes a training step")


@contextmanager
def wrapped_step(around: Callable[[Callable[[], Any]], Any]) -> Iterator[None]:
    """Inside, each training step is taken by ``around``, which gets it as a function without arguments."""
    kind, name = find_step()
    original = getattr(kind, name)
    setattr(kind, name, lambda self, *args, **options: around(lambda: original(self, *args, **options)))
    try:
        yield
    finally:
        setattr(kind, name, original)


def calls(name: str) -> list[tuple[str, str]]:
    """Python calls of named functions inside bpfree in the second step of a training: file and function.

    Comprehensions, lambda functions and generator expressions are not counted.
    """
    root = f"{Path(bpfree.__file__).parent}/"
    result: list[tuple[str, str]] = []
    steps = 0

    def record(frame: Any, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(root) and "<" not in code.co_name:
            result.append((code.co_filename.removeprefix(root), code.co_qualname))

    def count(step: Callable[[], Any]) -> Any:
        nonlocal steps
        steps += 1
        if steps != 2:
            return step()
        sys.setprofile(record)
        try:
            return step()
        finally:
            sys.setprofile(None)

    train = make(name)
    with wrapped_step(count):
        train(1)
    # The frame of the wrapped step itself is the first call.
    return result


def seconds(train: Callable[..., Any], epochs: int) -> tuple[float, float]:
    """Mean time of a training step, by the clock and by the processor's time, in seconds."""
    spans: list[tuple[float, float]] = []

    def measure(step: Callable[[], Any]) -> Any:
        clock, processor = time.perf_counter(), time.process_time()
        result = step()
        spans.append((time.perf_counter() - clock, time.process_time() - processor))
        return result

    with wrapped_step(measure):
        train(epochs)
    timed = spans[WARM_UP:]
    return sum(a for a, _ in timed) / len(timed), sum(b for _, b in timed) / len(timed)


def serve() -> None:
    """For each line of the input, the name of an arm, print the mean time of a step as JSON.

    The first line of the output is the version of torch and the folder of bpfree.
    """
    torch.set_num_threads(1)
    trainings: dict[str, Callable[..., Any]] = {}
    print(json.dumps({"torch": torch.__version__, "bpfree": bpfree.__file__}), flush=True)
    for line in sys.stdin:
        name = line.strip()
        if name not in trainings:
            trainings[name] = make(name)
            trainings[name](1)
        print(json.dumps(seconds(trainings[name], ARMS[name].epochs)), flush=True)


if __name__ == "__main__":
    serve()
