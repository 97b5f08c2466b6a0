"""`Cell`: one point of a benchmark, as checked settings and as the plain data that names it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import nn

from bpfree._errors import BadValue
from bpfree._settings import STRICT, validate
from bpfree.bench.devices import PhysicsConfig, physics_config
from bpfree.bench.energy import OLD_NAMES, EnergyConfig, energy_config
from bpfree.bench.files import Mapped, Values
from bpfree.bench.sections import (
    NETS,
    DatasetConfig,
    GraphConfig,
    NetConfig,
    Positive,
    dataset_config,
    net_config,
)
from bpfree.trainers import FitSettings, Trainer, TrainerSettings, get_trainer

#: Fields of a cell that its result does not depend on.
LABELS = ("arm", "targets", "matched", "tuning")


@dataclass(frozen=True, kw_only=True)
class TuningCost:
    """The cost of the search that gave an arm its settings.

    Attributes:
        trials: Settings that were tried.
        seconds: Wall-clock seconds of all their processes, pruned and repeated ones included.
    """

    __pydantic_config__ = STRICT

    trials: Positive
    seconds: Annotated[float, Ge(0)]


@dataclass(frozen=True)
class TrainerConfig:
    """A trainer by its id, with all its settings."""

    id: str
    settings: TrainerSettings

    @property
    def kind(self) -> type[Trainer]:
        """The trainer class."""
        return get_trainer(self.id)

    def make(self, net: nn.Module, seed: int, device: torch.device, **changes: Any) -> Trainer:
        """A trainer of ``net`` with these settings, of which ``changes`` replace some."""
        settings = {**asdict(self.settings), **changes}
        return self.kind(net, seed=seed, device=device, progress=False, **settings)

    def changed(self, changes: Values, where: str) -> TrainerConfig:
        """The same trainer with some settings replaced.

        Raises:
            BadValue: If a setting is unknown or has a bad value.
        """
        return trainer_config({"id": self.id, **asdict(self.settings), **changes}, where)

    def record(self) -> Mapped:
        """The id and the settings as plain data, under the names that rows and cell ids have."""
        old_names = _old_names(type(self.settings))
        return {"id": self.id} | {old_names.get(k, k): value for k, value in asdict(self.settings).items()}


def _old_names(settings: type[TrainerSettings]) -> dict[str, str]:
    """Names of settings that rows and cell ids keep, by the names of today."""
    renamed: Mapping[str, str] = getattr(settings, "renamed", {})
    return {new: old for old, new in renamed.items()}


def trainer_config(values: Values, where: str) -> TrainerConfig:
    """The checked section ``trainer``, called ``where`` in error messages.

    Raises:
        BadValue: If there is no such trainer, or a setting is unknown or has a bad value.
    """
    settings = dict(values)
    name = settings.pop("id", None)
    if not isinstance(name, str):
        raise BadValue(
            f"{where}.id = {name!r}: expected the id of a trainer, see 'python -m bpfree.bench list'"
        )
    return TrainerConfig(name, validate(get_trainer(name).Settings, settings, where))


@dataclass(frozen=True)
class Cell:
    """One point of a benchmark: everything that its result depends on, and under ``arm``, ``targets``,
    ``matched`` and ``tuning`` its purpose and the cost of its settings.
    """

    arm: str
    dataset: DatasetConfig | GraphConfig
    net: NetConfig
    trainer: TrainerConfig
    fit: FitSettings
    seed: int
    threads: int = 1
    device: str = "cpu"
    plugins: tuple[str, ...] = ()
    plugin_hashes: tuple[str, ...] = ()
    targets: tuple[float, ...] = ()
    matched: float | None = None
    energy: EnergyConfig | None = None
    physics: PhysicsConfig | None = None
    device_seed: int | None = None
    tuning: TuningCost | None = None

    def record(self) -> Mapped:
        """The cell as plain data, of which ids, rows and messages between processes are made."""
        return {
            "arm": self.arm,
            "dataset": asdict(self.dataset),
            "net": self.net.record(),
            "trainer": self.trainer.record(),
            # A setting that is younger than the rows is left out where it has its default.
            "fit": {k: v for k, v in asdict(self.fit).items() if k != "drop_last" or v},
            "seed": self.seed,
            "threads": self.threads,
            "device": self.device,
            "plugins": self.plugins,
            "plugin_hashes": self.plugin_hashes,
            "targets": self.targets,
            "matched": self.matched,
            "energy": None if self.energy is None else self.energy.record(),
            "physics": None if self.physics is None else self.physics.record(),
            "device_seed": self.device_seed,
            "tuning": None if self.tuning is None else asdict(self.tuning),
        }

    @staticmethod
    def from_record(record: Values) -> Cell:
        """The cell with this `record`. Its plugins are loaded first: they may register losses and trainers.

        Raises:
            BadValue: If a plugin cannot be run, or a name is unknown in this process.
        """
        for plugin in record["plugins"]:
            load_plugin(plugin)
        energy, physics, tuning = record["energy"], record["physics"], record["tuning"]
        net_names = NETS[record["net"]["name"]].old_names
        trainer_names = _old_names(get_trainer(record["trainer"]["id"]).Settings)
        return Cell(**{
            **record,
            "dataset": dataset_config(record["dataset"]),
            "net": net_config(_with_names_of_today(record["net"], net_names)),
            "trainer": trainer_config(_with_names_of_today(record["trainer"], trainer_names), "trainer"),
            "fit": validate(FitSettings, record["fit"], "fit"),
            "energy": None if energy is None else energy_config(_with_names_of_today(energy, OLD_NAMES)),
            "physics": physics and physics_config({**physics, "seeds": [record["device_seed"]]}),
            "tuning": None if tuning is None else validate(TuningCost, tuning, "tuning"),
        })  # fmt: skip

    @cached_property
    def id(self) -> str:
        """A hash of everything that its result depends on."""
        return id_of(self.record())


def _with_names_of_today(values: Values, old_names: Mapping[str, str]) -> Mapped:
    new_names = {old: new for new, old in old_names.items()}
    return {new_names.get(name, name): value for name, value in values.items()}


def id_of(record: Values) -> str:
    """`Cell.id` of the cell with this record."""
    omitted = {*LABELS, "plugins" if record["plugin_hashes"] else "plugin_hashes"}
    omitted |= set() if record["physics"] else {"physics", "device_seed"}
    omitted |= set() if record["energy"] else {"energy"}
    parts = {k: v for k, v in record.items() if k not in omitted}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def config_of(record: Values) -> Mapped:
    """What a row stores as its config: the part of a cell's record that all rows of an arm share."""
    absent = {name for name in ("energy", "physics") if record[name] is None}
    config = {k: v for k, v in record.items() if k not in {*LABELS, "seed", "device_seed", *absent}}
    return config | {name: [*record[name]] for name in ("plugins", "plugin_hashes")}


def load_plugin(plugin: str) -> None:
    """Run a Python file that registers local losses or trainers.

    Raises:
        BadValue: If there is no such file, or it raises an error.
    """
    import runpy

    if not Path(plugin).is_file():
        raise BadValue(f"plugins: {plugin}: no such file")
    try:
        runpy.run_path(plugin)
    except Exception as error:  # a plugin is the user's code
        raise BadValue(f"plugins: {plugin}: cannot be run: {type(error).__name__}: {error}") from error
