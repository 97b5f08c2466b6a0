"""One arm of the claims about several workers, in its own processes: one, or several started by torchrun.

    python -m benchmarks.claims._workers SPEC.json
    torchrun --standalone --nproc-per-node 2 -m benchmarks.claims._workers SPEC.json

The spec names the arm, its sizes, the cores that the processes are pinned to, and the file for the figures.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import bpfree
from bpfree import _seeds
from bpfree.data import TensorData

MODULE = "benchmarks.claims._workers"
#: Arms of one process; the others need two.
ALONE = ("simultaneous", "backprop")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """The settings of an arm.

    Attributes:
        arm: ``simultaneous`` and ``pipelined`` (Mono-Forward); ``backprop``, ``gpipe`` and ``1f1b``.
        dataset: Name for `bpfree.data.load`.
        samples: Number of training samples.
        hidden: Widths of the hidden layers.
        batch: Samples per step.
        epochs: Passes; the first is not timed.
        threads: Threads of each process.
        cores: Cores that the processes are pinned to: one each, or all for a single process.
        seed: Seed of the network and of the trainer.
        micro: Micro-batches of a pipelined backward pass.
        checkpoint: Folder for the checkpoints of the workers, or None.
        save_every: See `bpfree.distributed.workers.Pipeline`.
    """

    arm: str
    dataset: str = "mnist"
    samples: int = 60_000
    hidden: list[int] = field(default_factory=lambda: [1024] * 6)
    batch: int = 256
    epochs: int = 3
    threads: int = 1
    cores: list[int] | None = None
    seed: int = 0
    micro: int = 4
    checkpoint: str | None = None
    save_every: int = 50


def command(spec: Spec, folder: Path, restarts: int = 0) -> list[str]:
    """The command that runs an arm; it writes ``figures.json`` in ``folder``."""
    path = folder / "spec.json"
    path.write_text(json.dumps(asdict(spec)))
    if spec.arm in ALONE:
        return [sys.executable, "-m", MODULE, str(path)]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [sys.executable, *torchrun, "--max-restarts", str(restarts), "-m", MODULE, str(path)]


def environment(spec: Spec) -> dict[str, str]:
    """The environment of the processes of an arm."""
    return {**os.environ, "OMP_NUM_THREADS": str(spec.threads)}


def start(spec: Spec, folder: Path) -> dict[str, Any]:
    """Run an arm to its end; returns its figures."""
    found = subprocess.run(
        command(spec, folder), env=environment(spec), capture_output=True, text=True, check=False
    )
    if found.returncode != 0:
        raise RuntimeError(f"the arm {spec.arm} failed:\n{found.stdout}\n{found.stderr}")
    figures: dict[str, Any] = json.loads((folder / "figures.json").read_text())
    return figures


def data(spec: Spec) -> tuple[TensorData, TensorData]:
    """Training and test samples as vectors."""
    splits = bpfree.data.load(spec.dataset)
    found = []
    for split, n in ((splits.train, spec.samples), (splits.test, len(splits.test))):
        x, y = split.batch(torch.arange(min(n, len(split))))
        found.append(TensorData(x.flatten(1), y, split.n_classes))
    return found[0], found[1]


def net(spec: Spec, inputs: int, classes: int) -> nn.Sequential:
    """The network, with the same weights in every arm."""
    torch.manual_seed(spec.seed)
    return bpfree.nn.mlp([inputs, *spec.hidden, classes])


def mono_forward(spec: Spec) -> dict[str, Any]:
    """Mono-Forward with one worker or several."""
    train, test = data(spec)
    trainer = bpfree.MonoForward(
        net(spec, train.x.shape[1], train.n_classes),
        schedule="pipelined" if spec.arm == "pipelined" else "simultaneous",
        seed=spec.seed,
        lr=1e-3,
        progress=False,
    )
    times: list[float] = []

    @contextmanager
    def timed() -> Iterator[None]:
        if spec.checkpoint is not None:
            # Another process may wait for the start of the training.
            Path(spec.checkpoint).with_name(f"training.{os.getpid()}").touch()
        begin = time.perf_counter()
        yield
        times.append(time.perf_counter() - begin)

    hooks = bpfree.Hooks(window=lambda name: timed() if name == "train" else nullcontext())
    path = None if spec.checkpoint is None else Path(spec.checkpoint)
    history = trainer.fit(
        train,
        epochs=spec.epochs,
        batch_size=spec.batch,
        hooks=hooks,
        checkpoint=path,
        pipeline={"save_every": spec.save_every},
    )
    digest = hashlib.sha256()
    for tensor in trainer.cascade.state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    return {
        "epoch_s": times,
        "accuracy": trainer.evaluate(test)["accuracy"],
        "weights": digest.hexdigest(),
        "resumed": history.resumed,
        "replayed": history.replayed,
    }


def backprop(spec: Spec) -> dict[str, Any]:
    """Backpropagation with one worker, or with two by `torch.distributed.pipelining`."""
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

    train, test = data(spec)
    layers = list(net(spec, train.x.shape[1], train.n_classes))
    rank = int(os.environ.get("RANK", "0"))
    schedule: Any = None
    module = nn.Sequential(*layers)
    if spec.arm != "backprop":
        dist.init_process_group("gloo")
        # Each worker has half of the hidden layers, as in the pipelined schedule.
        half = 1 + 2 * (len(spec.hidden) // 2)
        module = nn.Sequential(*(layers[half:] if rank else layers[:half]))
        stage = PipelineStage(module, rank, 2, torch.device("cpu"))
        kind = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}[spec.arm]
        schedule = kind(stage, spec.micro, loss_fn=F.cross_entropy)
    optimizer = torch.optim.Adam(module.parameters(), 1e-3, fused=True)

    def step(x: Tensor, y: Tensor) -> None:
        if schedule is None:
            F.cross_entropy(module(x), y).backward()
        elif rank == 0:
            schedule.step(x)
        else:
            schedule.step(target=y)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    times = []
    for epoch in range(spec.epochs):
        begin = time.perf_counter()
        generator = _seeds.generator(torch.device("cpu"), spec.seed, "order", epoch)
        for indices in torch.randperm(len(train), generator=generator).split(spec.batch):
            # Micro-batches have one size: arms of this kind skip the last, shorter batch.
            if len(indices) == spec.batch:
                step(*train.batch(indices))
        times.append(time.perf_counter() - begin)
    with torch.no_grad():
        if spec.arm == "backprop":
            scores = module(test.x)
        else:
            # The second worker has the output layer; it needs the test outputs of the first.
            rows = torch.empty(len(test), spec.hidden[len(spec.hidden) // 2 - 1])
            dist.broadcast(rows if rank else module(test.x), 0)
            scores = module(rows) if rank else rows
            dist.destroy_process_group()
    if rank == 0 and spec.arm != "backprop":
        return {"epoch_s": times}
    return {"epoch_s": times, "accuracy": float((scores.argmax(1) == test.y).float().mean())}


def main() -> None:
    """Run the arm of the spec; the worker that computes the accuracy writes the figures."""
    path = Path(sys.argv[1])
    spec = Spec(**json.loads(path.read_text()))
    torch.set_num_threads(spec.threads)
    rank = int(os.environ.get("RANK", "0"))
    if spec.cores is not None:
        os.sched_setaffinity(0, set(spec.cores) if spec.arm in ALONE else {spec.cores[rank]})
    figures = mono_forward(spec) if spec.arm in ("simultaneous", "pipelined") else backprop(spec)
    if "accuracy" in figures and (rank == 0 or spec.arm != "pipelined"):
        partial = path.with_name("figures.partial")
        partial.write_text(json.dumps(figures))
        os.replace(partial, path.with_name("figures.json"))


if __name__ == "__main__":
    main()
