"""Workers of a pipelined run are killed at random moments; the result equals that of an undisturbed run.

    python -m benchmarks.claims.kill_a_layer

torchrun starts two workers and restarts them when one is killed. Each resumes from its own checkpoint. A
random worker gets SIGKILL at a random moment, ten times in one run; the weights are compared with those of a
run without kills.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks import claims
from benchmarks.claims._workers import Spec, command, environment, start

TITLE = (
    "Kill a layer: a worker killed at any moment is started again, and training ends as if nothing had been"
)
HOLDS_IF = "after 10 SIGKILLs of random workers the run ends within 0.5 points of the accuracy without kills"
LIMIT = 0.005


def measure(
    dataset: str = "mnist",
    samples: int = 60_000,
    hidden: tuple[int, ...] = (512,) * 4,
    batch: int = 128,
    epochs: int = 40,
    kills: int = 10,
    apart: tuple[float, float] = (1.0, 6.0),
    save_every: int = 50,
    seed: int = 0,
) -> dict[str, Any]:
    """Train without kills, then with kills.

    Args:
        dataset: Name of the data set.
        samples: Number of training samples.
        hidden: Widths of the hidden layers.
        batch: Samples per step.
        epochs: Epochs; enough for all kills.
        kills: Number of kills.
        apart: Smallest and largest number of seconds of training between two kills.
        save_every: Batches between checkpoints.
        seed: Seed of the moments and of the choice of workers.
    """
    draw = random.Random(seed)
    spec = Spec(
        arm="pipelined", dataset=dataset, samples=samples, hidden=list(hidden), batch=batch, epochs=epochs,
        save_every=save_every,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        calm_folder, folder = Path(name, "calm"), Path(name, "killed")
        calm_folder.mkdir()
        folder.mkdir()
        calm = start(spec, calm_folder)
        print(f"  in peace: accuracy {calm['accuracy']:.4f}", flush=True)
        spec = replace(spec, checkpoint=str(folder / "run"))
        with open(folder / "log", "wb") as log:
            run = subprocess.Popen(
                command(spec, folder, restarts=kills), env=environment(spec), stdout=log, stderr=log
            )
            struck = strike(run, folder, kills, apart, draw)
            code = run.wait()
        if code != 0:
            raise RuntimeError((folder / "log").read_text())
        killed = json.loads((folder / "figures.json").read_text())
    away = abs(killed["accuracy"] - calm["accuracy"])
    same = killed["weights"] == calm["weights"]
    return {
        "holds": len(struck) >= kills and away <= LIMIT and killed["resumed"] >= kills,
        "figure": (
            f"{len(struck)} kills, {100 * away:.2f} points away, weights {'equal' if same else 'differ'}; "
            f"{killed['replayed']} batches sent again"
        ),
        "kills": struck,
        "accuracy": {"in peace": calm["accuracy"], "with kills": killed["accuracy"]},
        "weights_equal": same,
        "resumed": killed["resumed"],
        "replayed": killed["replayed"],
        "sizes": {
            "dataset": dataset, "samples": samples, "hidden": list(hidden), "batch": batch, "epochs": epochs,
            "save_every": save_every, "apart": list(apart), "seed": seed,
        },
    }  # fmt: skip


def strike(
    run: subprocess.Popen[bytes], folder: Path, kills: int, apart: tuple[float, float], draw: random.Random
) -> list[dict[str, float]]:
    """Kill workers one after another during training; returns ranks and the seconds before each kill."""
    struck: list[dict[str, float]] = []
    met: set[int] = set()
    while len(struck) < kills and run.poll() is None:
        pids = training(run, folder, met)
        if pids is None:
            time.sleep(0.05)
            continue
        wait = draw.uniform(*apart)
        time.sleep(wait)
        victim = draw.randrange(len(pids))
        try:
            os.kill(pids[victim], signal.SIGKILL)
        except ProcessLookupError:
            break  # the training ended earlier: fewer kills, which the result shows
        met |= set(pids)
        struck.append({"worker": victim, "after_s": round(wait, 2)})
        print(f"  SIGKILL: worker {victim}, {wait:.2f} s into its training", flush=True)
    return struck


def training(run: subprocess.Popen[bytes], folder: Path, met: set[int]) -> list[int] | None:
    """The workers by rank if all train since the last kill, otherwise None."""
    try:
        children = psutil.Process(run.pid).children()
    except psutil.NoSuchProcess:
        return None
    found = {}
    for child in children:
        try:
            environment = child.environ()
        except psutil.Error:
            continue
        if "RANK" in environment and child.pid not in met:
            found[int(environment["RANK"])] = child.pid
    if len(found) < 2:
        return None
    begun = [(folder / f"training.{pid}").exists() for pid in found.values()]
    return [found[rank] for rank in sorted(found)] if all(begun) else None


if __name__ == "__main__":
    sys.exit(claims.run("kill_a_layer"))
