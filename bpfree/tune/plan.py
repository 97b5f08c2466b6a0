"""The plan of a search: arms with their spaces, seeds, sampler and pruner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import exp, log
from typing import Annotated, Any, Literal

from annotated_types import Ge, MinLen

from bpfree._errors import BadValue
from bpfree._settings import STRICT, did_you_mean, validate
from bpfree.bench.cells import Cell
from bpfree.bench.config import cells
from bpfree.bench.files import Mapped, Values
from bpfree.bench.protocol import arm_id
from bpfree.metrics import Metric
from bpfree.trainers import Choice, Dimension, Space, active_dimensions

Seed = Annotated[int, Ge(0)]

#: First seed of a search by default; the seeds of reported results are smaller.
FIRST_SEED = 100

#: Values of a range on a grid by default.
GRID_POINTS = 5


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """The section ``tune`` of a config.

    Attributes:
        sampler: ``tpe`` (tree-structured Parzen estimator), ``random``, or ``grid``.
        pruner: ``median``: a trial stops if it is behind the median of the others after as many epochs;
            ``hyperband``; or ``none``.
        seed: Seed of the sampler.
        seeds: Seeds of training of every trial; none of those of the experiment.
        only: The settings to search; None: all that the trainers declare.
        space: Narrower dimensions, for every arm that has them.
        arms: The same for single arms, by label.
    """

    __pydantic_config__ = STRICT

    sampler: Literal["tpe", "random", "grid"] = "tpe"
    pruner: Literal["median", "hyperband", "none"] = "median"
    seed: Seed = 0
    seeds: Annotated[list[Seed], MinLen(1)] = field(default_factory=lambda: [FIRST_SEED])
    only: Annotated[list[str], MinLen(1)] | None = None
    space: Mapped = field(default_factory=dict)
    arms: dict[str, Mapped] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RangeConfig:
    """A narrower range: ``low`` to ``high``, and how many ``points`` it has on a grid."""

    __pydantic_config__ = STRICT

    low: float | int
    high: float | int
    points: Annotated[int, Ge(2)] = GRID_POINTS


@dataclass(frozen=True)
class TunedArm:
    """An arm of an experiment, with the space of its search.

    Attributes:
        label: Its name.
        position: Its index in the config: 0 for the first arm, k for ``controls[k - 1]``.
        cells: One cell for each seed, with the settings of the config.
        space: The dimensions of the search; it may be empty.
        grid: The values of each dimension on a grid.
    """

    label: str
    position: int
    cells: tuple[Cell, ...]
    space: Space
    grid: Mapping[str, tuple[Any, ...]]

    def with_settings(self, params: Values) -> list[Cell]:
        """The arm's cells with these settings.

        Raises:
            BadValue: If a setting is out of range.
        """
        trainer = self.cells[0].trainer.changed(params, f"{self.label}: trainer")
        return [replace(cell, trainer=trainer) for cell in self.cells]

    @property
    def metric(self) -> Metric:
        """The trainer's default metric; the data may decide for another of the same direction."""
        return self.cells[0].trainer.kind.metric

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """The direction of a study, as Optuna names it."""
        return "maximize" if self.metric.greater_is_better else "minimize"

    @property
    def points(self) -> int:
        """The number of points of its grid."""
        count = 1
        for values in self.grid.values():
            count *= len(values)
        return count

    @property
    def epochs(self) -> int:
        """The epochs of a stage, over all seeds."""
        return self.cells[0].fit.epochs * len(self.cells)


@dataclass(frozen=True)
class Plan:
    """A checked search.

    Attributes:
        config: The experiment, without its section ``tune``.
        tune: The section ``tune``.
        arms: All arms, also those without a setting to search.
    """

    config: Mapped
    tune: TuneConfig
    arms: tuple[TunedArm, ...]

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return str(self.config["name"])

    def identity(self, arm: TunedArm) -> Mapped:
        """What must be equal for another command to continue an arm's study."""
        first = arm.cells[0].record()
        base = {k: v for k, v in first["trainer"].items() if k not in arm.space}
        pruner = self.tune.pruner
        return {
            "trainer": base,
            **{k: first[k] for k in ("dataset", "net", "fit", "threads", "device")},
            **(
                {"physics": first["physics"], "devices": [c.device_seed for c in arm.cells]}
                if first["physics"]
                else {}
            ),
            "plugins": list(first["plugin_hashes"]),
            "seeds": [cell.seed for cell in arm.cells],
            "space": {name: asdict(dimension) for name, dimension in arm.space.items()},
            "sampler": {"name": self.tune.sampler, "seed": self.tune.seed},
            "pruner": pruner,
            # Studies of bpfree 0.1 have no direction; all maximize.
            **({} if arm.metric.greater_is_better else {"direction": arm.direction}),
            **({"grid": {k: list(v) for k, v in arm.grid.items()}} if self.tune.sampler == "grid" else {}),
        }


def make_plan(config: Mapped, options: Values | None = None, where: str = "") -> Plan:
    """Check an experiment and its section ``tune``.

    Args:
        config: The content of a YAML file.
        options: Values that replace those of its section ``tune``.
        where: Name of the config, for error messages.

    Raises:
        BadValue: naming each key that is unknown or has a bad value, the value, and what is allowed.
    """
    section = config.get("tune", {})
    if not isinstance(section, dict):
        raise BadValue(f"{where}tune = {section!r}: expected keys and values")
    tune = validate(TuneConfig, {**section, **(options or {})}, f"{where}tune")
    experiment = {"name": where.rstrip(": ") or "search"} | {k: v for k, v in config.items() if k != "tune"}
    reported = {cell.seed for cell in cells(experiment, where=where)}
    reused = sorted(reported & set(tune.seeds))
    if reused:
        raise BadValue(
            f"{where}tune.seeds = {tune.seeds}: {reused} are seeds that the experiment reports: "
            "settings must be chosen with other seeds"
        )
    all_cells = cells({**experiment, "seeds": tune.seeds}, where=where)
    by_arm: dict[str, list[Cell]] = {}
    for cell in all_cells:
        by_arm.setdefault(arm_id(cell), []).append(cell)
    cells_by_arm = [tuple(of_arm) for of_arm in by_arm.values()]
    labels = [of_arm[0].arm for of_arm in cells_by_arm]
    for label in labels:
        if labels.count(label) > 1:
            raise BadValue(f"{where}label = {label!r}: two arms have it; give each its own label")
    for label in tune.arms:
        if label not in labels:
            raise BadValue(f"{where}tune.arms.{label}: no such arm; {did_you_mean(label, tuple(labels))}")
    trainers = [of_arm[0].trainer for of_arm in cells_by_arm]
    spaces = [active_dimensions(trainer.kind.space, asdict(trainer.settings)) for trainer in trainers]
    _check_names(tune, spaces, where)
    arms = tuple(
        _arm(k, of_arm, space, tune, where)
        for k, (of_arm, space) in enumerate(zip(cells_by_arm, spaces, strict=True))
    )
    return Plan(experiment, tune, arms)


def _check_names(tune: TuneConfig, spaces: Sequence[Space], where: str) -> None:
    declared = {name: None for space in spaces for name in space}
    for key, names in (("only", tune.only or ()), ("space", tune.space)):
        for name in names:
            if name not in declared:
                raise BadValue(
                    f"{where}tune.{key}: {name!r}: no arm can search it; {did_you_mean(name, declared)}"
                )


def _arm(position: int, of_arm: tuple[Cell, ...], declared: Space, tune: TuneConfig, where: str) -> TunedArm:
    label = of_arm[0].arm
    for name in tune.arms.get(label, {}):
        if name not in declared:
            known = did_you_mean(name, dict(declared))
            raise BadValue(f"{where}tune.arms.{label}.{name}: this arm cannot search it; {known}")
    space: dict[str, Dimension] = {}
    grid: dict[str, tuple[Any, ...]] = {}
    for name, dimension in declared.items():
        if tune.only is not None and name not in tune.only:
            continue
        key, given = f"{where}tune.space.{name}", tune.space.get(name)
        if name in tune.arms.get(label, {}):
            key, given = f"{where}tune.arms.{label}.{name}", tune.arms[label][name]
        space[name], points = dimension, GRID_POINTS
        if given is not None:
            space[name], points = _narrow(dimension, given, key)
        grid[name] = _grid(space[name], points)
    arm = TunedArm(label, position, of_arm, space, grid)
    for end in (0, -1):  # values that the trainer does not accept are reported before anything runs
        arm.with_settings({name: values[end] for name, values in grid.items()})
    return arm


def _narrow(dimension: Dimension, given: object, key: str) -> tuple[Dimension, int]:
    """A part of a declared dimension, and its number of points on a grid."""
    if isinstance(given, list):
        if not given or any(given.count(value) > 1 for value in given):
            raise BadValue(f"{key} = {given!r}: expected distinct values, {dimension}")
        for value in given:
            if not _inside(dimension, value):
                raise BadValue(f"{key} = {value!r}: outside of what is allowed: {dimension}")
        return Choice(tuple(given), dimension.given), len(given)
    if not isinstance(given, dict) or isinstance(dimension, Choice):
        ends_or = "" if isinstance(dimension, Choice) else "low and high, or "
        raise BadValue(f"{key} = {given!r}: expected {ends_or}a list of values, {dimension}")
    ends = {"low": dimension.low, "high": dimension.high}
    checked = validate(RangeConfig, {**ends, **given}, key)
    for name in ("low", "high"):
        if not _inside(dimension, getattr(checked, name)):
            raise BadValue(
                f"{key}.{name} = {getattr(checked, name)!r}: outside of what is allowed: {dimension}"
            )
    if not checked.low < checked.high:
        raise BadValue(f"{key}: low = {checked.low!r} must be less than high = {checked.high!r}")
    kind = type(dimension.low)
    return replace(dimension, low=kind(checked.low), high=kind(checked.high)), checked.points


def _inside(dimension: Dimension, value: object) -> bool:
    if isinstance(dimension, Choice):
        return any(value == allowed and type(value) is type(allowed) for allowed in dimension.values)
    whole = isinstance(dimension.low, int)
    kind = int if whole else int | float
    return (
        isinstance(value, kind) and not isinstance(value, bool) and dimension.low <= value <= dimension.high
    )


def _grid(dimension: Dimension, points: int) -> tuple[Any, ...]:
    """Values at equal distances on the dimension's scale, with both ends."""
    if isinstance(dimension, Choice):
        return dimension.values
    low, high, steps = dimension.low, dimension.high, points - 1
    if dimension.log:
        inner = [exp(log(low) + k * (log(high) - log(low)) / steps) for k in range(1, steps)]
    else:
        inner = [low + k * (high - low) / steps for k in range(1, steps)]
    values = [low, *inner, high]
    if isinstance(low, int) and isinstance(high, int):
        values = sorted({round(value) for value in values})
    return tuple(values)
