"""Runs one seed of a trial in a process of its own: trains it, and evaluates it on validation data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from bpfree._errors import BadValue
from bpfree.bench.cell import load_data, make_trainer, open_device
from bpfree.bench.cells import Cell
from bpfree.bench.files import Mapped
from bpfree.bench.metric import describe
from bpfree.bench.results import Row
from bpfree.meters import Stopwatch
from bpfree.trainers import Checkpoint, Hooks


def run(cell: Cell, folder: Path, checkpoint_s: float, progress: Callable[..., None]) -> Row:
    """Train a cell and evaluate it on its validation data; the test data are not used.

    Args:
        cell: The cell to train.
        folder: Folder of its checkpoint while it runs.
        checkpoint_s: Seconds between checkpoints.
        progress: Is called with the passes over the training data so far and the newest value of the metric
            on validation data.

    Raises:
        BadValue: If smaller is better in the metric of this trainer, and not in that of its class, or the
            other way round: the study follows the class.
    """
    device = open_device(cell)
    stopwatch = Stopwatch(device)
    data = load_data(cell, device)
    train, validation = data.train, data.validation
    trainer = make_trainer(cell, data, device)
    steps = cell.fit.steps(len(train))

    def show(_done: int, _of: int, row: Mapped) -> None:
        value = row.get("validation", {}).get(trainer.cascade.headline)
        if value is not None:
            # Epochs are computed from the steps: a trainer may train something else first, in other epochs.
            progress(round(row["step"] / steps), value)

    trainer.fit(
        train,
        validation,
        checkpoint=Checkpoint(folder / "checkpoint.safetensors", checkpoint_s, stopwatch),
        hooks=Hooks(stopwatch, show),
        **asdict(cell.fit),
    )
    metric, of_class = trainer.metric, type(trainer).metric
    if metric.greater_is_better != of_class.greater_is_better:
        raise BadValue(
            f"{trainer.id}: the metric {metric.name} of these data and {of_class.name} of the class have "
            "opposite directions: give the class a metric of the same direction"
        )
    value = trainer.evaluate(validation)[metric.name]
    return {"status": "ok", "seed": cell.seed, **describe(metric), f"val_{metric.name}": value}
