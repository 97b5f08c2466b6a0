"""One seed of one trial, in a process of its own: trained as the bench trains it, judged on validation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bpfree.bench.cell import load_data, make_trainer, open_device
from bpfree.bench.config import Cell
from bpfree.bench.results import Row
from bpfree.meters import Stopwatch
from bpfree.trainers import Checkpoint, FitSettings, Hooks


def run(cell: Cell, folder: Path, checkpoint_s: float, progress: Callable[..., None]) -> Row:
    """Train a cell and evaluate it on its validation data; the test data are not looked at.

    Args:
        cell: What to train.
        folder: Where its checkpoint lies while it runs.
        checkpoint_s: Seconds between checkpoints.
        progress: Told the passes over the training data so far and the newest validation accuracy.
    """
    device = open_device(cell)
    watch = Stopwatch(device)
    data = load_data(cell, device)
    train, validation = data.train, data.validation
    trainer = make_trainer(cell, data, device)
    steps = FitSettings(**cell.fit).steps(len(train))

    def show(_done: int, _of: int, row: dict[str, Any]) -> None:
        accuracy = row.get("validation", {}).get(trainer.cascade.headline)
        if accuracy is not None:
            # Counted from the steps: a family may train something else first, with epochs of its own.
            progress(round(row["step"] / steps), accuracy)

    trainer.fit(
        train,
        validation,
        checkpoint=Checkpoint(folder / "checkpoint.safetensors", checkpoint_s, watch),
        hooks=Hooks(watch, show),
        **cell.fit,
    )
    accuracy = trainer.evaluate(validation)["accuracy"]
    return {"status": "ok", "seed": cell.seed, "val_accuracy": accuracy}
