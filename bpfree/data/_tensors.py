"""Labelled data held whole on one device, and the making of batches from it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset, IterableDataset

from bpfree._errors import BadValue
from bpfree.data._augment import augment, check_names
from bpfree.data._graph_data import GraphData


@dataclass(frozen=True, eq=False, repr=False)
class TensorData:
    """Labelled samples, resident on one device.

    Attributes:
        x: uint8 images `[N, C, H, W]`, or floating point samples `[N, ...]`.
        y: int64 class labels `[N]`, each in `0..n_classes-1`.
        n_classes: number of classes.
        mean: per channel (dimension 1 of `x`), taken off each batch; uint8 images are divided by 255 before,
            so it is in units of a [0, 1] pixel. None, together with `std`: not standardised.
        std: per channel, divides each batch after the mean was taken off; same units.
        augment: names of the augmentations for training batches, in order; `[N, C, H, W]` data only.
        name: what to call the data in messages and reports.

    Raises BadValue if these do not fit together.
    """

    x: Tensor
    y: Tensor
    n_classes: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augment: tuple[str, ...] = ()
    name: str = "data"
    # Kept on the device: building these for every batch would make the host wait for it.
    _centre: Tensor | None = field(init=False, default=None)
    _scale: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._check_samples()
        self._check_labels()
        self._check_standardisation()
        object.__setattr__(self, "augment", check_names(self.augment))
        if self.augment and self.x.ndim != 4:
            raise BadValue(
                f"{self.name}: augment {self.augment} needs images [N, C, H, W], x is {list(self.x.shape)}; "
                "reshape x, or leave augment empty"
            )
        object.__setattr__(self, "_centre", self._per_channel(self.mean))
        object.__setattr__(self, "_scale", self._per_channel(self.std))

    def _check_samples(self) -> None:
        x, y = self.x, self.y
        if x.dtype != torch.uint8 and not x.is_floating_point():
            raise BadValue(
                f"{self.name}: x is {x.dtype}; expected uint8 images or floats; convert with x.float()"
            )
        if x.dtype == torch.uint8 and x.ndim != 4:
            raise BadValue(
                f"{self.name}: x is uint8 {list(x.shape)}; expected images [N, C, H, W]; "
                "reshape it, or convert other data to float"
            )
        if x.ndim < 2 or len(x) == 0:
            raise BadValue(f"{self.name}: x is {list(x.shape)}; expected [N, ...] with at least one sample")
        if y.ndim != 1 or len(x) != len(y):
            raise BadValue(
                f"{self.name}: x is {list(x.shape)} and y {list(y.shape)}; "
                f"expected y [{len(x)}], one label per sample"
            )
        if x.device != y.device:
            raise BadValue(f"{self.name}: x is on {x.device} and y on {y.device}; move both to one device")

    def _check_labels(self) -> None:
        if self.y.dtype != torch.int64:
            raise BadValue(
                f"{self.name}: y is {self.y.dtype}; expected int64 class labels; convert with y.long()"
            )
        low, high = (int(v) for v in torch.aminmax(self.y))
        if low < 0 or high >= self.n_classes:
            raise BadValue(
                f"{self.name}: y has labels {low}..{high}; expected 0..{self.n_classes - 1} for "
                f"n_classes={self.n_classes}; relabel y or raise n_classes"
            )

    def _check_standardisation(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise BadValue(f"{self.name}: mean is {self.mean} and std {self.std}; give both or neither")
        if self.mean is None or self.std is None:
            return
        channels = self.x.shape[1]
        if len(self.mean) != channels or len(self.std) != channels:
            raise BadValue(
                f"{self.name}: mean {self.mean} and std {self.std} must have one value for each of the "
                f"{channels} channels of x {list(self.x.shape)}"
            )
        if not all(s > 0 for s in self.std):
            raise BadValue(
                f"{self.name}: std is {self.std}; expected all above 0; a channel that never varies cannot "
                "be standardised: drop it, or do not standardise"
            )

    def _per_channel(self, values: tuple[float, ...] | None) -> Tensor | None:
        if values is None:
            return None
        return torch.tensor(values, dtype=torch.float32, device=self.x.device).view(
            -1, *[1] * (self.x.ndim - 2)
        )

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        return (
            f"TensorData({self.name!r}, {len(self)} samples {list(self.sample_shape)} {self.x.dtype}, "
            f"{self.n_classes} classes, {self.x.device})"
        )

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample, without N."""
        return tuple(self.x.shape[1:])

    @property
    def augmented(self) -> bool:
        """Whether batches made with a generator differ from those made without."""
        return bool(self.augment)

    def content(self) -> list[Any]:
        """What tells two data sets apart: labels, some of the samples, and what is done to them."""
        some = self.x[:: max(1, len(self) // 64)].contiguous().cpu().numpy().tobytes()
        digest = hashlib.sha256(self.y.cpu().numpy().tobytes() + some).hexdigest()
        shape = list(self.sample_shape)
        return [self.name, len(self), shape, list(self.augment), self.mean, self.std, digest]

    def to(self, device: str | torch.device) -> "TensorData":
        """The same data on `device`."""
        return replace(self, x=self.x.to(device), y=self.y.to(device))

    def take(self, indices: Tensor) -> "TensorData":
        """The samples at `indices` (int64 `[M]`, on any device) as data of their own, in that order."""
        indices = indices.to(self.x.device)
        return replace(self, x=self.x.index_select(0, indices), y=self.y.index_select(0, indices))

    def batch(self, indices: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """The samples at `indices` (int64 `[B]`), ready for a model.

        Args:
            indices: int64 `[B]`; on the data's own device nothing waits for a copy.
            generator: on the data's device; given, the batch is augmented (training), else it is not.

        Returns:
            float32 `[B, *sample_shape]`: uint8 images divided by 255, standardised where mean and std are
            set; and int64 labels `[B]`.
        """
        indices = indices.to(self.x.device)
        # index_select copies, so what follows may work in place.
        x = self.x.index_select(0, indices)
        if generator is not None and self.augment:
            # Before the conversion to float: a quarter of the bytes to move.
            x = augment(x, self.augment, generator)
        pixels = x.dtype == torch.uint8
        x = x.to(torch.float32)
        if pixels:
            x.div_(255)
        if self._centre is not None and self._scale is not None:
            x.sub_(self._centre).div_(self._scale)
        return x, self.y.index_select(0, indices)


def as_data(obj: Any, n_classes: int | None = None) -> TensorData:
    """Make TensorData of what a user is likely to hold.

    Args:
        obj: TensorData or GraphData (returned as it is); a pair of tensors (x, y) with integer labels; or a
            map-style torch Dataset of (tensor, int), read and stacked once.
        n_classes: number of classes; by default one more than the highest label.

    Raises TypeError for anything else, BadValue for tensors that do not fit together or, with TensorData, for
    another `n_classes` than its own.
    """
    if isinstance(obj, TensorData | GraphData):
        if n_classes not in (None, obj.n_classes):
            raise BadValue(f"n_classes is {n_classes}, but {obj!r} was given; leave n_classes out")
        return obj  # type: ignore[return-value]
    if isinstance(obj, Dataset) and not isinstance(obj, IterableDataset) and hasattr(obj, "__len__"):
        x, y = _stack(obj)
    elif isinstance(obj, Sequence) and len(obj) == 2 and all(isinstance(part, Tensor) for part in obj):
        x, y = obj
    else:
        raise TypeError(
            f"data is a {type(obj).__name__}; expected TensorData, a pair of tensors (x, y), or a map-style "
            "torch Dataset of (tensor, int) with a length"
        )
    if not (y.is_floating_point() or y.is_complex()):
        y = y.long()
    if n_classes is None:
        n_classes = int(y.max()) + 1 if y.numel() else 0
    return TensorData(x, y, n_classes)


def _stack(dataset: Any) -> tuple[Tensor, Tensor]:
    """Read a whole map-style data set of (tensor, int) into x `[N, ...]` and y `[N]`."""
    if len(dataset) == 0:
        raise BadValue(f"the {type(dataset).__name__} is empty; expected at least one sample")
    xs: list[Tensor] = []
    ys: list[int] = []
    for i in range(len(dataset)):
        x, y = dataset[i]
        if not isinstance(x, Tensor):
            raise TypeError(
                f"sample {i} of the {type(dataset).__name__} is a {type(x).__name__}; expected a tensor; "
                "give the data set a transform such as torchvision.transforms.PILToTensor()"
            )
        if xs and x.shape != xs[0].shape:
            raise BadValue(
                f"sample {i} of the {type(dataset).__name__} has shape {list(x.shape)}, "
                f"the first {list(xs[0].shape)}; expected one shape; resize or crop in the data set"
            )
        xs.append(x)
        ys.append(int(y))
    return torch.stack(xs), torch.tensor(ys)
