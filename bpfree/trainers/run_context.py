"""`RunContext`: the data and options of one call of `Trainer.fit`."""

from __future__ import annotations

from dataclasses import dataclass

from bpfree._feature_store import Store
from bpfree.data import TensorData
from bpfree.engine.run_state import Checkpoint, Hooks
from bpfree.engine.settings import FitSettings


@dataclass(frozen=True)
class RunContext:
    """The data and options of one run, as `Trainer.fit` has checked them.

    Attributes:
        train: The training data.
        validation: The validation data, or None.
        fit: Settings of the run.
        checkpoint: Where the state of the run is saved, or None.
        hooks: Callbacks.
        store: Where features are cached.
    """

    train: TensorData
    validation: TensorData | None
    fit: FitSettings
    checkpoint: Checkpoint | None
    hooks: Hooks
    store: Store
