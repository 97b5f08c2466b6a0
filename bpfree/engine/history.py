"""The history of a run: one row for each epoch."""

from __future__ import annotations

from dataclasses import dataclass, field

from bpfree._types import JsonObject
from bpfree.metrics import Metric


@dataclass
class History:
    """The rows of a run, in order.

    Attributes:
        rows: One dict for each epoch: ``stage``, ``epoch``, ``step`` (optimizer steps so far, all stages),
            ``lr`` (learning rate of the lowest block that was trained, or of the readout if it was trained
            alone), ``loss`` (mean training loss of each block that was trained, bottom first) and, for an
            epoch with an evaluation, ``metric`` (its name), ``validation`` (the metric by readout, and of
            each block alone) and ``diagnosis`` (the result of `Trainer.diagnose`). With devices, ``passes``:
            the rows that they have processed so far, by purpose. Where feedback crosses from one worker to
            another, ``age``: the age of the messages in steps, ``mean`` and ``largest`` by worker.
        stages: One dict for each finished stage: ``name``, ``epochs``, ``stopped_early`` and, with
            validation, ``best_epoch`` and ``best``.
        warnings: With validation, a sentence for each block that is, at the end, more than 2 points worse
            than the block below it, or whose 95 % interval over validation samples includes chance.
        resumed: How often the run was resumed from a checkpoint.
        replayed: Number of batches that a worker sent again to the worker above it after a restart.
    """

    rows: list[JsonObject] = field(default_factory=list)
    stages: list[JsonObject] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    resumed: int = 0
    replayed: int = 0

    def name_metric(self, metric: Metric) -> None:
        """Add what rows and stages of a checkpoint of bpfree 0.1 lack: the name of the metric, and its sign.

        They store the negated value of a metric of which smaller is better.
        """
        rows = [row for row in self.rows if "validation" in row and "metric" not in row]
        for row in rows:
            row["metric"] = metric.name
            row["validation"] = {name: metric.signed(value) for name, value in row["validation"].items()}
        if rows:
            for stage in self.stages:
                if "best" in stage:
                    stage["best"] = metric.signed(stage["best"])

    def curve(self, name: str) -> list[tuple[int, float]]:
        """``(step, validation metric)`` of the readout or block called ``name``."""
        return [(r["step"], r["validation"][name]) for r in self.rows if name in r.get("validation", {})]
