"""Settings of the data sets and networks that a config can name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, ClassVar, Literal, cast

import torch
from annotated_types import Ge, Gt, Lt, MinLen
from torch import nn as torch_nn

from bpfree import nn
from bpfree._errors import BadValue
from bpfree._renamed import with_new_keys
from bpfree._settings import STRICT, Must, did_you_mean, validate
from bpfree.bench.files import Mapped, Values
from bpfree.data import GRAPH_NAMES, NAMES, Splits, load, load_graph
from bpfree.physics import Device

Positive = Annotated[int, Ge(1)]


def _check_activation(name: str) -> None:
    if name not in nn.ACTIVATIONS:
        raise ValueError(f"unknown; {did_you_mean(name, nn.ACTIVATIONS)}")


Activation = Annotated[str, Must(_check_activation)]


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

    #: Modules to import before such data are loaded.
    preload: ClassVar[tuple[str, ...]] = ()

    def load(self, seed: int, device: torch.device) -> Splits:
        """The data, the same for every model seed."""
        return load(**{**asdict(self), "augment": tuple(self.augment or ())}, device=device)


@dataclass(frozen=True, kw_only=True)
class GraphConfig:
    """Arguments of `bpfree.data.load_graph`; without ``fold``, seed k has fold k modulo 5."""

    __pydantic_config__ = STRICT

    name: str
    split: Literal["folds", "public", "links"] = "folds"
    fold: Annotated[int, Ge(0), Lt(5)] | None = None
    normalize: bool = True
    download: bool | None = None

    preload: ClassVar[tuple[str, ...]] = ("bpfree.bench.preload_graphs",)

    def load(self, seed: int, device: torch.device) -> Splits:
        """The graph with the fold of the settings, or else that of ``seed``."""
        fold = seed % 5 if self.fold is None else self.fold
        return cast(Splits, load_graph(**{**asdict(self), "fold": fold}, device=device))


@dataclass(frozen=True, kw_only=True)
class NetConfig(ABC):
    """Settings of a network.

    Attributes:
        name: Its name in a config.
        old_names: Names of settings that rows and cell ids keep, by the names of today.
    """

    __pydantic_config__ = STRICT
    name: ClassVar[str]
    old_names: ClassVar[Mapping[str, str]] = {}

    @property
    def n_devices(self) -> int:
        """How many physical devices `build` takes."""
        return 0

    @abstractmethod
    def build(
        self, sample_shape: Sequence[int], n_classes: int, devices: Sequence[Device | None] = ()
    ) -> torch_nn.Module:
        """The network for samples of this shape.

        Args:
            sample_shape: Shape of a sample, without the batch.
            n_classes: Number of classes.
            devices: One for each layer of a physical net, None where a layer has none.
        """

    def record(self) -> Mapped:
        """The settings as plain data, under the names that rows and cell ids have."""
        settings = {self.old_names.get(name, name): value for name, value in asdict(self).items()}
        return {"name": self.name, **settings}


@dataclass(frozen=True, kw_only=True)
class MLPConfig(NetConfig):
    """A multilayer perceptron; inputs and classes come from the data."""

    name = "mlp"

    hidden: Annotated[list[Positive], MinLen(1)]
    activation: Activation = "relu"
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    output_bias: bool = True
    bias: bool = True

    def build(
        self, sample_shape: Sequence[int], n_classes: int, devices: Sequence[Device | None] = ()
    ) -> torch_nn.Module:
        size = 1
        for length in sample_shape:
            size *= length
        return nn.mlp(
            [size, *self.hidden, n_classes], self.activation, self.dropout, self.output_bias, self.bias
        )


@dataclass(frozen=True, kw_only=True)
class CNNConfig(NetConfig):
    """A convolutional network; images and classes come from the data."""

    name = "cnn"

    channels: Annotated[list[Positive], MinLen(1)]
    activation: Activation = "relu"
    pool: Literal["avg", "max", "stride"] = "avg"
    batch_norm: bool = False
    bias: bool = True

    def build(
        self, sample_shape: Sequence[int], n_classes: int, devices: Sequence[Device | None] = ()
    ) -> torch_nn.Module:
        _check_images("cnn", sample_shape)
        shape = (self.channels, self.activation, self.pool, self.batch_norm, self.bias)
        return nn.cnn(sample_shape, n_classes, *shape)


@dataclass(frozen=True, kw_only=True)
class CaFoCNNConfig(NetConfig):
    """Cascaded-Forward's convolutional network; images and classes come from the data."""

    name = "cafo_cnn"

    channels: Annotated[list[Positive], MinLen(1)] = field(default_factory=lambda: [32, 128, 512])
    activation: Literal["relu"] = "relu"

    def build(
        self, sample_shape: Sequence[int], n_classes: int, devices: Sequence[Device | None] = ()
    ) -> torch_nn.Module:
        _check_images("cafo_cnn", sample_shape)
        return nn.cafo_cnn(sample_shape, n_classes, self.channels)


@dataclass(frozen=True, kw_only=True)
class VGG8bConfig(NetConfig):
    """VGG8b, 6 convolutions and 2 linear layers; images and classes come from the data."""

    name = "vgg8b"
    layers: ClassVar[Sequence[int | str]] = nn.VGG8B

    width: Annotated[float, Gt(0)] = 1.0
    hidden: Positive = 1024
    activation: Activation = "leaky_relu"
    norm: nn.Norm = "batch"
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0

    def build(
        self, sample_shape: Sequence[int], n_classes: int, devices: Sequence[Device | None] = ()
    ) -> torch_nn.Module:
        _check_images("vgg", sample_shape)
        shape = (self.width, self.hidden, self.activation, self.norm, self.dropout)
        return nn.vgg(sample_shape, n_classes, self.layers, *shape)


@dataclass(frozen=True, kw_only=True)
class VGG11bConfig(VGG8bConfig):
    """VGG11b, 9 convolutions and 2 linear layers; images and classes come from the data."""

    name = "vgg11b"
    layers = nn.VGG11B


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(NetConfig):
    """A residual net, ResNet-18 for small images by default; images and classes come from the data."""

    name = "resnet"

    blocks: Annotated[list[Positive], MinLen(1)] = field(default_factory=lambda: [2, 2, 2, 2])
    width: Annotated[float, Gt(0)] = 1.0
    activation: Literal["relu"] = "relu"
    norm: nn.Norm = "batch"
    shortcut: nn.Shortcut = "projection"
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0

    def build(
        self, sample_shape: Sequence[int], n_classes: int, devices: Sequence[Device | None] = ()
    ) -> torch_nn.Module:
        _check_images("resnet", sample_shape)
        shape = (self.blocks, self.width, self.norm, self.shortcut, self.dropout)
        return nn.resnet(sample_shape, n_classes, *shape)


@dataclass(frozen=True, kw_only=True)
class PhysicalNetConfig(NetConfig):
    """Devices, each followed by a matrix; inputs and classes come from the data, devices from `physics`."""

    name = "physical"
    old_names: ClassVar[Mapping[str, str]] = {"normalize": "normalise"}

    hidden: list[Positive] = field(default_factory=list)
    drive: str | list[str] = "direct"
    skip: bool = True
    normalize: nn.Normalization | Literal["standardise"] = "none"

    @property
    def n_devices(self) -> int:
        return len(self.hidden) + 1

    def build(
        self, sample_shape: Sequence[int], n_classes: int, devices: Sequence[Device | None] = ()
    ) -> torch_nn.Module:
        return nn.physical_net(
            devices, sample_shape, n_classes, self.hidden, self.drive, self.skip, self.normalize
        )


@dataclass(frozen=True, kw_only=True)
class GCNConfig(NetConfig):
    """A graph convolutional network; features and classes come from the data."""

    name = "gcn"
    kind: ClassVar[Literal["gcn", "sage", "gat"]] = "gcn"

    hidden: Annotated[list[Positive], MinLen(1)]

    def build(
        self, sample_shape: Sequence[int], n_classes: int, devices: Sequence[Device | None] = ()
    ) -> torch_nn.Module:
        # Its layers are made when the trainer has its graph.
        return nn.GNN(self.kind, self.hidden)


@dataclass(frozen=True, kw_only=True)
class SAGEConfig(GCNConfig):
    """GraphSAGE with the mean over neighbors; features and classes come from the data."""

    name = kind = "sage"


@dataclass(frozen=True, kw_only=True)
class GATConfig(GCNConfig):
    """A graph attention network; features and classes come from the data."""

    name = kind = "gat"

    heads: Positive = 4

    def build(
        self, sample_shape: Sequence[int], n_classes: int, devices: Sequence[Device | None] = ()
    ) -> torch_nn.Module:
        return nn.GNN(self.kind, self.hidden, self.heads)


def _check_images(name: str, sample_shape: Sequence[int]) -> None:
    if len(sample_shape) != 3:
        raise BadValue(
            f"net.name = {name!r}: needs images (channels, height, width), not {tuple(sample_shape)}"
        )


NETS: dict[str, type[NetConfig]] = {
    kind.name: kind
    for kind in (
        MLPConfig,
        CNNConfig,
        CaFoCNNConfig,
        VGG8bConfig,
        VGG11bConfig,
        ResNetConfig,
        GCNConfig,
        SAGEConfig,
        GATConfig,
        PhysicalNetConfig,
    )
}


def dataset_config(values: Values) -> DatasetConfig | GraphConfig:
    """The checked settings of a data set.

    Raises:
        BadValue: If the name is unknown or a setting is bad.
    """
    name = values.get("name")
    known = (*NAMES, *GRAPH_NAMES)
    if "name" in values and name not in known:
        raise BadValue(f"dataset.name = {name!r}: unknown; {did_you_mean(str(name), known)}")
    if name in GRAPH_NAMES:
        return validate(GraphConfig, values, "dataset")
    return validate(DatasetConfig, values, "dataset")


def net_config(values: Values, where: str = "") -> NetConfig:
    """The checked settings of a net.

    Raises:
        BadValue: If the name is unknown or a setting is bad.
    """
    settings = dict(values)
    name = settings.pop("name", None)
    if not isinstance(name, str) or name not in NETS:
        raise BadValue(f"{where}net.name = {name!r}: unknown; {did_you_mean(str(name), NETS)}")
    settings = with_new_keys(settings, {old: new for new, old in NETS[name].old_names.items()}, f"{where}net")
    return validate(NETS[name], settings, f"{where}net")
