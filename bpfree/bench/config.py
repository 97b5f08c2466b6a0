"""An experiment as a YAML file, checked strictly, and the cells that it stands for."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt, MinLen

from bpfree._errors import BadValue
from bpfree._settings import STRICT, did_you_mean, validate
from bpfree.bench.devices import physics_config
from bpfree.bench.energy import energy_config
from bpfree.bench.files import Mapped
from bpfree.bench.sections import PhysicalNetConfig, Positive, dataset_config, net_config
from bpfree.trainers import FitSettings, TrainerSettings, get_trainer


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What is not about the method: seeds, threads, device, and files that register local losses."""

    __pydantic_config__ = STRICT

    name: str
    seeds: Annotated[list[Annotated[int, Ge(0)]], MinLen(1)]
    threads: Positive = 1
    device: str = "cpu"
    plugins: list[str] | None = None
    protocols: list[Literal["A", "B"]] = field(default_factory=lambda: ["A"])
    targets: list[Annotated[float, Gt(0), Lt(1)]] = field(default_factory=list)


#: What is in a cell and is no part of what its result depends on.
LABELS = ("arm", "targets", "matched", "tuning")


@dataclass(frozen=True, kw_only=True)
class TuningCost:
    """What the search that gave an arm its settings has cost.

    Attributes:
        trials: Settings that were tried.
        seconds: Wall-clock seconds of all their processes, pruned and repeated ones included.
    """

    __pydantic_config__ = STRICT

    trials: Positive
    seconds: Annotated[float, Ge(0)]


@dataclass(frozen=True)
class Cell:
    """One point of a benchmark: everything that its result depends on, and under ``arm``, ``targets``,
    ``matched`` and ``tuning`` what it is there for and what its settings have cost, as plain JSON-able data.
    """

    arm: str
    dataset: Mapped
    net: Mapped
    trainer: Mapped
    fit: Mapped
    seed: int
    threads: int = 1
    device: str = "cpu"
    plugins: tuple[str, ...] = ()
    plugin_hashes: tuple[str, ...] = ()
    targets: tuple[float, ...] = ()
    matched: float | None = None
    energy: Mapped | None = None
    physics: Mapped | None = None
    device_seed: int | None = None
    tuning: Mapped | None = None

    @property
    def id(self) -> str:
        """A hash of all that its result depends on."""
        left_out = [*LABELS, "plugins" if self.plugin_hashes else "plugin_hashes"]
        left_out += [] if self.physics else ["physics", "device_seed"]
        parts = {k: v for k, v in asdict(self).items() if k not in left_out}
        if self.energy is None:
            del parts["energy"]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


RUN_SECTIONS = ("name", "seeds", "threads", "device", "plugins", "protocols", "targets")
ARM_SECTIONS = ("trainer", "fit", "net", "physics", "label", "tuning")
SECTIONS = (*RUN_SECTIONS, *ARM_SECTIONS, "dataset", "controls", "energy", "tune")


def cells(config: Mapped, seeds: int | None = None, where: str = "") -> list[Cell]:
    """The cells of an experiment, interleaved: all arms of the first seed, then all of the second in the
    opposite order, and so on, so that a machine that slowly gets hotter favours none of them.

    Args:
        config: The content of a YAML file; its section ``tune`` is for `bpfree.tune` alone.
        seeds: If given, seeds 0 to ``seeds - 1`` take the place of the config's own.
        where: Name of the config, for error messages.

    Raises:
        BadValue: naming each key that is unknown, missing or has a bad value, the value, and what is allowed.
    """
    _known(config, SECTIONS, where)
    run = validate(RunConfig, _run_values(config, seeds, where), where)
    if len(set(run.seeds)) != len(run.seeds):
        raise BadValue(f"{where}seeds = {run.seeds}: a seed stands there twice; seeds must be distinct")
    for plugin in run.plugins or []:
        load_plugin(plugin)
    dataset = dataset_config(_section(config, "dataset", where))
    controls = config.get("controls", [])
    if not isinstance(controls, list):
        raise BadValue(
            f"controls = {controls!r}: expected a list of arms with the keys {', '.join(ARM_SECTIONS)}"
        )
    arms = [_arm({k: config[k] for k in ARM_SECTIONS if k in config}, config, "")]
    arms += [_arm(control, config, f"controls.{i}.") for i, control in enumerate(controls)]
    common: Mapped = {"threads": run.threads, "device": run.device, "plugins": tuple(run.plugins or ())}
    if "energy" in config:
        common["energy"] = asdict(energy_config(_section(config, "energy", where), where))
    common["plugin_hashes"] = tuple(
        hashlib.sha256(Path(plugin).read_bytes()).hexdigest()[:16] for plugin in run.plugins or ()
    )
    common |= {"dataset": asdict(dataset), "targets": tuple(run.targets)}
    orders = itertools.cycle((arms, arms[::-1]))
    found = [
        Cell(**{**arm, "physics": physics}, seed=seed, device_seed=device, **common)
        for seed, order in zip(run.seeds, orders, strict=False)
        for arm in order
        for physics, device in _devices(arm["physics"])
    ]
    if len({cell.id for cell in found}) != len(found):
        raise BadValue(f"{where}controls: two arms are the same; a cell may stand there once only")
    return found


def _devices(physics: Mapped | None) -> list[tuple[Mapped | None, int | None]]:
    """A physics section for each of its device seeds."""
    if physics is None:
        return [(None, None)]
    rest = {k: v for k, v in physics.items() if k != "seeds"}
    return [(rest, seed) for seed in physics["seeds"]]


def _run_values(config: Mapped, seeds: int | None, where: str) -> Mapped:
    values: Mapped = {k: config[k] for k in RUN_SECTIONS if k in config}
    if seeds is not None:
        if seeds < 1:
            raise BadValue(f"--seeds {seeds}: expected at least 1")
        values["seeds"] = list(range(seeds))
    values.setdefault("seeds", [0, 1, 2, 3, 4])
    values.setdefault("name", where.rstrip(": "))
    return values


def _arm(arm: Any, config: Mapped, where: str) -> Mapped:
    """The parts of a `Cell` that a trainer and its net make, all settings filled in."""
    if not isinstance(arm, dict):
        raise BadValue(f"{where.rstrip('.')} = {arm!r}: expected the keys {', '.join(ARM_SECTIONS)}")
    _known(arm, ARM_SECTIONS, where)
    trainer = dict(_section(arm, "trainer", where))
    name = trainer.pop("id", None)
    if not isinstance(name, str):
        raise BadValue(
            f"{where}trainer.id = {name!r}: expected the id of a trainer, see 'python -m bpfree.bench list'"
        )
    settings: TrainerSettings = validate(get_trainer(name).Settings, trainer, f"{where}trainer")
    fit = validate(
        FitSettings, {**_section(config, "fit", "", {}), **_section(arm, "fit", where, {})}, f"{where}fit"
    )
    net = dict(_section(arm if "net" in arm else config, "net", where))
    label = arm.get("label", name)
    if not isinstance(label, str):
        raise BadValue(f"{where}label = {label!r}: expected a name")
    tuning = None
    if "tuning" in arm:
        tuning = asdict(validate(TuningCost, _section(arm, "tuning", where), f"{where}tuning"))
    made = net_config(net, where)
    return {
        "arm": label,
        "net": {"name": net.get("name"), **asdict(made)},
        "physics": _physics(arm, config, isinstance(made, PhysicalNetConfig), where),
        "trainer": {"id": name, **asdict(settings)},
        # What was not there when a row was made must not change its cell's name.
        "fit": {k: v for k, v in asdict(fit).items() if k != "drop_last" or v},
        "tuning": tuning,
    }


def _physics(arm: Mapped, config: Mapped, wanted: bool, where: str) -> Mapped | None:
    """The checked physics section, the arm's own keys before the config's."""
    if not wanted:
        if "physics" in arm:
            raise BadValue(f"{where}physics: only a net named 'physical' has devices inside")
        return None
    shared = _section(config, "physics", "", {})
    own = _section(arm, "physics", where, {})
    if own.get("system", shared.get("system")) != shared.get("system"):
        # Another system has other options; the device seeds stay.
        shared = {k: v for k, v in shared.items() if k == "seeds"}
    return asdict(physics_config({**shared, **own}, where))


def load_plugin(plugin: str) -> None:
    """Run a Python file that registers local losses.

    Raises:
        BadValue: If there is no such file.
    """
    import runpy

    if not Path(plugin).is_file():
        raise BadValue(f"plugins: {plugin}: no such file")
    try:
        runpy.run_path(plugin)
    except Exception as error:  # a plugin is the user's own code: whatever it raises is theirs to read
        raise BadValue(f"plugins: {plugin}: cannot be run: {type(error).__name__}: {error}") from error


def _section(config: Mapping[str, Any], key: str, where: str, default: Mapped | None = None) -> Mapped:
    found = config.get(key, default)
    if found is None:
        raise BadValue(f"{where}{key}: missing; it must be given")
    if not isinstance(found, dict):
        raise BadValue(f"{where}{key} = {found!r}: expected keys and values")
    return found


def _known(config: Mapping[str, Any], allowed: Sequence[str], where: str) -> None:
    for key in config:
        if key not in allowed:
            raise BadValue(f"{where}{key}: unknown key; {did_you_mean(str(key), tuple(allowed))}")
