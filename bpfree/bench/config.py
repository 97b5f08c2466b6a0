"""Checks an experiment, the content of a YAML file, and makes its cells."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt, MinLen

from bpfree._errors import BadValue
from bpfree._settings import STRICT, did_you_mean, validate
from bpfree.bench.cells import Cell, TuningCost, load_plugin, trainer_config
from bpfree.bench.devices import PhysicsConfig, physics_config
from bpfree.bench.energy import energy_config
from bpfree.bench.files import Mapped, Values
from bpfree.bench.sections import Positive, dataset_config, net_config
from bpfree.trainers import FitSettings

__all__ = ["Cell", "RunConfig", "cells", "load_plugin"]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of the run: seeds, threads, device, and files that register losses and trainers."""

    __pydantic_config__ = STRICT

    name: str
    seeds: Annotated[list[Annotated[int, Ge(0)]], MinLen(1)]
    threads: Positive = 1
    device: str = "cpu"
    plugins: list[str] | None = None
    protocols: list[Literal["A", "B"]] = field(default_factory=lambda: ["A"])
    targets: list[Annotated[float, Gt(0), Lt(1)]] = field(default_factory=list)


RUN_SECTIONS = ("name", "seeds", "threads", "device", "plugins", "protocols", "targets")
ARM_SECTIONS = ("trainer", "fit", "net", "physics", "label", "tuning")
SECTIONS = (*RUN_SECTIONS, *ARM_SECTIONS, "dataset", "controls", "energy", "tune")


def cells(config: Mapped, seeds: int | None = None, where: str = "") -> list[Cell]:
    """The cells of an experiment, interleaved: all arms of the first seed, then all of the second in the
    opposite order, and so on, so that a machine that slowly heats up favors no arm.

    Args:
        config: The content of a YAML file; its section ``tune`` is used by `bpfree.tune` alone.
        seeds: If given, seeds 0 to ``seeds - 1`` replace those of the config.
        where: Name of the config, for error messages.

    Raises:
        BadValue: naming each key that is unknown, missing or has a bad value, the value, and what is allowed.
    """
    _known(config, SECTIONS, where)
    run = validate(RunConfig, _run_values(config, seeds, where), where)
    if len(set(run.seeds)) != len(run.seeds):
        raise BadValue(f"{where}seeds = {run.seeds}: expected distinct seeds, one is given twice")
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
    plugins = tuple(run.plugins or ())
    common: Mapped = {
        "dataset": dataset,
        "threads": run.threads,
        "device": run.device,
        "plugins": plugins,
        "plugin_hashes": tuple(hashlib.sha256(Path(p).read_bytes()).hexdigest()[:16] for p in plugins),
        "energy": energy_config(_section(config, "energy", where), where) if "energy" in config else None,
        "targets": tuple(run.targets),
    }
    orders = itertools.cycle((arms, arms[::-1]))
    result = [
        Cell(**{**arm, "physics": physics}, seed=seed, device_seed=device_seed, **common)
        for seed, order in zip(run.seeds, orders, strict=False)
        for arm in order
        for physics, device_seed in _per_device_seed(arm["physics"])
    ]
    if len({cell.id for cell in result}) != len(result):
        raise BadValue(f"{where}controls: two arms are the same: remove one, or change a setting of it")
    return result


def _per_device_seed(physics: PhysicsConfig | None) -> list[tuple[PhysicsConfig | None, int | None]]:
    """The physics section once for each of its device seeds."""
    if physics is None:
        return [(None, None)]
    return [(replace(physics, seeds=[seed]), seed) for seed in physics.seeds]


def _run_values(config: Mapped, seeds: int | None, where: str) -> Mapped:
    values: Mapped = {k: config[k] for k in RUN_SECTIONS if k in config}
    if seeds is not None:
        if seeds < 1:
            raise BadValue(f"--seeds {seeds}: expected at least 1")
        values["seeds"] = list(range(seeds))
    values.setdefault("seeds", [0, 1, 2, 3, 4])
    values.setdefault("name", where.rstrip(": "))
    return values


def _arm(arm: object, config: Mapped, where: str) -> Mapped:
    """The fields of a `Cell` that belong to an arm."""
    if not isinstance(arm, dict):
        raise BadValue(f"{where.rstrip('.')} = {arm!r}: expected the keys {', '.join(ARM_SECTIONS)}")
    _known(arm, ARM_SECTIONS, where)
    trainer = trainer_config(_section(arm, "trainer", where), f"{where}trainer")
    label = arm.get("label", trainer.id)
    if not isinstance(label, str):
        raise BadValue(f"{where}label = {label!r}: expected a name")
    net = net_config(_section(arm if "net" in arm else config, "net", where), where)
    fit = {**_section(config, "fit", "", {}), **_section(arm, "fit", where, {})}
    tuning = _section(arm, "tuning", where) if "tuning" in arm else None
    return {
        "arm": label,
        "net": net,
        "physics": _physics(arm, config, net.n_devices > 0, where),
        "trainer": trainer,
        "fit": validate(FitSettings, fit, f"{where}fit"),
        "tuning": None if tuning is None else validate(TuningCost, tuning, f"{where}tuning"),
    }


def _physics(arm: Mapped, config: Mapped, has_devices: bool, where: str) -> PhysicsConfig | None:
    """The checked physics section: the config's, of which the arm's own keys replace some."""
    if not has_devices:
        if "physics" in arm:
            raise BadValue(f"{where}physics: only a net named 'physical' has devices")
        return None
    shared = _section(config, "physics", "", {})
    of_arm = _section(arm, "physics", where, {})
    if of_arm.get("system", shared.get("system")) != shared.get("system"):
        # Another system has other options; the device seeds are kept.
        shared = {k: v for k, v in shared.items() if k == "seeds"}
    return physics_config({**shared, **of_arm}, where)


def _section(config: Values, key: str, where: str, default: Mapped | None = None) -> Mapped:
    section = config.get(key, default)
    if section is None:
        raise BadValue(f"{where}{key}: missing; it must be given")
    if not isinstance(section, dict):
        raise BadValue(f"{where}{key} = {section!r}: expected keys and values")
    return section


def _known(config: Values, allowed: Sequence[str], where: str) -> None:
    for key in config:
        if key not in allowed:
            raise BadValue(f"{where}{key}: unknown key; {did_you_mean(str(key), tuple(allowed))}")
