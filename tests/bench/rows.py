"""Rows in the layout of a bench, with given values."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]

ROW: Row = {
    "schema": 2,
    "status": "ok",
    "arm": "backprop",
    "trainer": "backprop",
    "dataset": "digits",
    "net": "mlp",
    "seed": 0,
    "locality": "L0",
    "method": {"schedule": "simultaneous", "readout": "last"},
    "config": {
        "dataset": {"name": "digits"},
        "net": {"name": "mlp", "hidden": [32, 16]},
        "trainer": {"id": "backprop", "lr": 0.1},
        "fit": {"epochs": 10, "batch_size": 64, "patience": None},
    },
    "env": {
        "cpu": "A processor",
        "threads": 1,
        "torch": "2.11",
        "python": "3.11",
        "bpfree": "0.1",
        "source": "ab",
    },
    "git": {"commit": "0123456789abcdef", "dirty": False},
    "metrics": {
        "metric": "accuracy",
        "greater_is_better": True,
        "share": True,
        "test_accuracy": 0.9,
        "val_accuracy": 0.9,
        "readouts": {"last": 0.9},
        "blocks": [0.9],
    },
    "time": {"train_s": 2.0, "eval_s": 0.1},
    "memory": {"saved_bytes": 4096, "params": 100, "optim": 200, "rss": 10**8},
    "flops": {"train_step": 2_000_000, "train_total": 20_000_000, "batch": 64, "infer": 9},
    "budget": {"passes": 10, "steps": 10, "updates_per_weight": 10, "stages": 1, "capped_stages": 1},
    "segments": 1,
    "curve": [[5, 0.85, 1.0], [10, 0.9, 2.0]],
}


def row(trainer: str, seed: int, arm: str | None = None, **changes: Any) -> Row:
    """A row; ``changes`` are written with ``__`` for a dot: ``metrics__test_accuracy=0.5``."""
    found = copy.deepcopy(ROW)
    found |= {"trainer": trainer, "arm": arm or trainer, "seed": seed}
    found["config"]["trainer"]["id"] = trainer
    found["locality"] = "L0" if trainer == "backprop" else "L2"
    for path, value in changes.items():
        *parents, last = path.split("__")
        at = found
        for key in parents:
            at = at.setdefault(key, {})
        at[last] = value
    identity = [found["config"], seed, found.get("protocol", {}).get("id")]
    found["cell_id"] = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    found.setdefault("weights_sha256", f"{found['arm']} {found['cell_id']}")
    return found


def in_metric(rows: Sequence[Row], metric: str, better: bool, share: bool) -> list[Row]:
    """The rows with their values under the name of another metric."""
    found = copy.deepcopy(list(rows))
    for one in found:
        values = one["metrics"]
        values |= {"metric": metric, "greater_is_better": better, "share": share}
        values |= {f"{part}_{metric}": values.pop(f"{part}_accuracy") for part in ("test", "val")}
    return found


def arm(trainer: str, accuracies: Sequence[float], name: str | None = None, **changes: Any) -> list[Row]:
    """Seeds 0, 1, ... of an arm with these test accuracies."""
    return [
        row(trainer, seed, name, metrics__test_accuracy=value, **changes)
        for seed, value in enumerate(accuracies)
    ]
