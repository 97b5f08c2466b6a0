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
from torch import nn as torch_nn

from bpfree import nn
from bpfree._errors import BadValue
from bpfree._settings import STRICT, did_you_mean, validate
from bpfree.bench.energy import energy_config
from bpfree.data import NAMES
from bpfree.trainers import FitSettings, TrainerSettings, get_trainer

Mapped = dict[str, Any]
Positive = Annotated[int, Ge(1)]


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Arguments of `bpfree.data.load`."""

    __pydantic_config__ = STRICT

    name: str
    standardize: bool = False
    augment: list[str] | None = None
    train_size: Positive | None = None
    validation_size: Positive | None = None
    split_seed: Annotated[int, Ge(0)] = 0
    path: str | None = None
    image_size: Positive | None = None
    download: bool | None = None


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """A multilayer perceptron; inputs and classes come from the data."""

    __pydantic_config__ = STRICT

    hidden: Annotated[list[Positive], MinLen(1)]
    activation: str = "relu"
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    output_bias: bool = True
    bias: bool = True

    def build(self, sample_shape: Sequence[int], n_classes: int) -> torch_nn.Module:
        """The network for samples of this shape."""
        size = 1
        for length in sample_shape:
            size *= length
        return nn.mlp(
            [size, *self.hidden, n_classes], self.activation, self.dropout, self.output_bias, self.bias
        )


@dataclass(frozen=True, kw_only=True)
class CNNConfig:
    """A convolutional network; images and classes come from the data."""

    __pydantic_config__ = STRICT

    channels: Annotated[list[Positive], MinLen(1)]
    activation: str = "relu"
    pool: Literal["avg", "max", "stride"] = "avg"
    batch_norm: bool = False
    bias: bool = True

    def build(self, sample_shape: Sequence[int], n_classes: int) -> torch_nn.Module:
        """The network for images of this shape."""
        _check_images("cnn", sample_shape)
        shape = (self.channels, self.activation, self.pool, self.batch_norm, self.bias)
        return nn.cnn(sample_shape, n_classes, *shape)


@dataclass(frozen=True, kw_only=True)
class CaFoCNNConfig:
    """Cascaded-Forward's convolutional network; images and classes come from the data."""

    __pydantic_config__ = STRICT

    channels: Annotated[list[Positive], MinLen(1)] = field(default_factory=lambda: [32, 128, 512])
    activation: Literal["relu"] = "relu"

    def build(self, sample_shape: Sequence[int], n_classes: int) -> torch_nn.Module:
        """The network for images of this shape."""
        _check_images("cafo_cnn", sample_shape)
        return nn.cafo_cnn(sample_shape, n_classes, self.channels)


def _check_images(name: str, sample_shape: Sequence[int]) -> None:
    if len(sample_shape) != 3:
        raise BadValue(
            f"net.name = {name!r}: needs images (channels, height, width), not {tuple(sample_shape)}"
        )


NetConfig = MLPConfig | CNNConfig | CaFoCNNConfig
NETS: dict[str, type[NetConfig]] = {"mlp": MLPConfig, "cnn": CNNConfig, "cafo_cnn": CaFoCNNConfig}


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
    tuning: Mapped | None = None

    @property
    def id(self) -> str:
        """A hash of all that its result depends on."""
        left_out = (*LABELS, "plugins" if self.plugin_hashes else "plugin_hashes")
        parts = {k: v for k, v in asdict(self).items() if k not in left_out}
        if self.energy is None:
            del parts["energy"]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def read_yaml(path: Path) -> Mapped:
    """The mapping in a YAML 1.2 file.

    Raises:
        BadValue: If the file is missing, is not YAML, has a key twice, or is not a mapping.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        found = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadValue(f"{path}: no such file; configs are YAML files, see the folder configs/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadValue(f"{path}: cannot be read: {error}") from None
    except YAMLError as error:
        raise BadValue(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise BadValue(f"{path}: expected keys and values, found {type(found).__name__}")
    return found


def override(config: Mapped, assignment: str) -> None:
    """Apply ``key.sub=value`` to a config in place; the value is read as YAML.

    Raises:
        BadValue: If it has no ``=``, or leads through something that is neither mapping nor list.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    path, equals, text = assignment.partition("=")
    if not equals or not path:
        raise BadValue(f"--set {assignment}: expected key=value, for example trainer.lr=2e-4")
    try:
        value = YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        raise BadValue(f"--set {assignment}: {text!r} is not a YAML value") from None
    *parents, last = path.split(".")
    at: Any = config
    for key in parents:
        at = _child(at, key, assignment)
    if isinstance(at, list):
        _child(at, last, assignment)
        at[int(last)] = value
    elif isinstance(at, dict):
        at[last] = value
    else:
        raise BadValue(f"--set {assignment}: {path!r} leads through a value that has no keys")


def _child(at: Any, key: str, assignment: str) -> Any:
    if isinstance(at, dict):
        return at.setdefault(key, {})
    if isinstance(at, list) and key.isdecimal() and int(key) < len(at):
        return at[int(key)]
    raise BadValue(f"--set {assignment}: no item {key!r} there")


RUN_SECTIONS = ("name", "seeds", "threads", "device", "plugins", "protocols", "targets")
ARM_SECTIONS = ("trainer", "fit", "net", "label", "tuning")
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
    dataset = validate(DatasetConfig, _section(config, "dataset", where), "dataset")
    if dataset.name not in NAMES:
        raise BadValue(f"dataset.name = {dataset.name!r}: unknown; {did_you_mean(dataset.name, NAMES)}")
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
        Cell(**arm, seed=seed, **common)
        for seed, order in zip(run.seeds, orders, strict=False)
        for arm in order
    ]
    if len({cell.id for cell in found}) != len(found):
        raise BadValue(f"{where}controls: two arms are the same; a cell may stand there once only")
    return found


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
    return {
        "arm": label,
        "net": {"name": net.get("name"), **asdict(net_config(net, where))},
        "trainer": {"id": name, **asdict(settings)},
        "fit": asdict(fit),
        "tuning": tuning,
    }


def net_config(values: Mapping[str, Any], where: str = "") -> NetConfig:
    """The checked settings of a net.

    Raises:
        BadValue: If the name is unknown or a setting is bad.
    """
    rest = dict(values)
    name = rest.pop("name", None)
    if not isinstance(name, str) or name not in NETS:
        raise BadValue(f"{where}net.name = {name!r}: unknown; {did_you_mean(str(name), NETS)}")
    checked: NetConfig = validate(NETS[name], rest, f"{where}net")
    if checked.activation not in nn.ACTIVATIONS:
        known = did_you_mean(checked.activation, nn.ACTIVATIONS)
        raise BadValue(f"{where}net.activation = {checked.activation!r}: unknown; {known}")
    return checked


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
