"""A small search that tests share."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage

from bpfree.tune.plan import Plan, TunedArm, make_plan
from bpfree.tune.storage import open_storage
from bpfree.tune.study import ArmStudy

CONFIG: dict[str, Any] = {
    "name": "small",
    "dataset": {"name": "digits", "train_size": 300, "validation_size": 100},
    "net": {"name": "mlp", "hidden": [16]},
    "fit": {"epochs": 2, "batch_size": 64},
    "trainer": {"id": "mono_forward", "lr": 0.5},
    "controls": [{"trainer": {"id": "backprop"}}],
    "seeds": [0, 1],
    "tune": {"only": ["lr"]},
}


def config(**tune: Any) -> dict[str, Any]:
    """A copy of the small search with other values in its section ``tune``."""
    found = copy.deepcopy(CONFIG)
    found["tune"] |= tune
    return found


def plan(**tune: Any) -> Plan:
    """The plan of the small search."""
    return make_plan(config(**tune))


def arm_study(made: Plan, storage: BaseStorage, trials: int, arm: int = 0) -> ArmStudy:
    """The study of one arm."""
    return ArmStudy(made, made.arms[arm], storage, trials)


def open_at(kind: str, folder: Path) -> BaseStorage:
    """A journal or an SQLite file in ``folder``."""
    return open_storage(folder, None if kind == "journal" else f"sqlite:///{folder}/study.db")


def with_epochs(made: Plan, epochs: int) -> Plan:
    """The same plan with other epochs in every arm."""

    def changed(arm: TunedArm) -> TunedArm:
        return replace(arm, cells=tuple(replace(c, fit=replace(c.fit, epochs=epochs)) for c in arm.cells))

    return replace(made, arms=tuple(map(changed, made.arms)))
