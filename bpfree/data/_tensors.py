"""Labelled data held whole on one device, and the making of batches from it."""

import hashlib
import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Generator, Tensor

from bpfree._errors import BadValue
from bpfree.data._augment import augment, check_names


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
        dtype: floating point type of batches; trainers set it to that of their network.

    Raises BadValue if these do not fit together.
    """

    x: Tensor
    y: Tensor
    n_classes: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augment: tuple[str, ...] = ()
    name: str = "data"
    dtype: torch.dtype = torch.float32
    # Kept on the device: building these for every batch would make the host wait for it.
    _centre: Tensor | None = field(init=False, default=None)
    _scale: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        for key in ("mean", "std"):
            object.__setattr__(self, key, self._values(key))
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

    def _values(self, key: str) -> tuple[float, ...] | None:
        """`mean` or `std` as a tuple of floats, whatever sequence was given."""
        given = getattr(self, key)
        if given is None:
            return None
        try:
            found = tuple(float(value) for value in given)
        except (TypeError, ValueError):
            raise BadValue(
                f"{self.name}: {key} is {given!r}; expected a number for each channel of x, as a tuple"
            ) from None
        if not all(math.isfinite(value) for value in found):
            raise BadValue(f"{self.name}: {key} is {found}; expected finite numbers; std all above 0")
        return found

    def _check_samples(self) -> None:
        x, y = self.x, self.y
        if x.layout != torch.strided or x.is_quantized or x.is_nested:
            kind = "quantized" if x.is_quantized else "nested" if x.is_nested else str(x.layout)
            raise BadValue(
                f"{self.name}: x is a {kind} tensor; expected a dense one; convert it first (to_dense)"
            )
        if x.is_complex():
            raise BadValue(
                f"{self.name}: x is {x.dtype}; expected uint8 images or floats; give the real and imaginary "
                "parts as channels (torch.view_as_real), or the magnitude (x.abs())"
            )
        if x.dtype != torch.uint8 and not x.is_floating_point():
            raise BadValue(
                f"{self.name}: x is {x.dtype}; expected uint8 images or floats; convert with x.float()"
            )
        if x.is_floating_point() and x.itemsize < 2:
            raise BadValue(f"{self.name}: x is {x.dtype}; expected float16 or wider; convert with x.float()")
        if x.dtype == torch.uint8 and x.ndim != 4:
            raise BadValue(
                f"{self.name}: x is uint8 {list(x.shape)}; expected images [N, C, H, W]; "
                "reshape it, or convert other data to float"
            )
        if x.ndim < 2 or len(x) == 0:
            raise BadValue(f"{self.name}: x is {list(x.shape)}; expected [N, ...] with at least one sample")
        if x.numel() == 0:
            raise BadValue(f"{self.name}: x is {list(x.shape)}; expected at least one value in each sample")
        if y.ndim != 1 or len(x) != len(y):
            raise BadValue(
                f"{self.name}: x is {list(x.shape)} and y {list(y.shape)}; "
                f"expected y [{len(x)}], one label per sample{_flat_labels(x, y)}"
            )
        if x.device != y.device:
            raise BadValue(f"{self.name}: x is on {x.device} and y on {y.device}; move both to one device")

    def _check_labels(self) -> None:
        y = self.y
        if y.is_complex() or (y.is_floating_point() and not bool((y == y.round()).all())):
            raise BadValue(
                f"{self.name}: y is {y.dtype} and holds values that are no class numbers; expected int64 "
                "class labels, one of 0..n_classes-1 for each sample"
            )
        if y.dtype != torch.int64:
            raise BadValue(f"{self.name}: y is {y.dtype}; expected int64 class labels; convert with y.long()")
        low, high = (int(v) for v in torch.aminmax(y))
        if low < 0 or high >= self.n_classes:
            raise BadValue(
                f"{self.name}: y has labels {low}..{high}; expected 0..{self.n_classes - 1} for "
                f"n_classes={self.n_classes}; {self._relabelling(low, high)}"
            )

    def _relabelling(self, low: int, high: int) -> str:
        if low == -1 and high == 1 and not bool((self.y == 0).any()):
            return "relabel y by (y > 0).long(), for 2 classes"
        if low < 0:
            return "relabel y; samples without a label must be left out"
        return "relabel y by y - 1" if (low, high) == (1, self.n_classes) else "relabel y or raise n_classes"

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
        return torch.tensor(values, dtype=self.dtype, device=self.x.device).view(-1, *[1] * (self.x.ndim - 2))

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
        some = self.x[:: max(1, len(self) // 64)].contiguous().cpu()
        # As bytes: NumPy has no bfloat16.
        content = some.flatten().view(torch.uint8).numpy().tobytes()
        digest = hashlib.sha256(self.y.cpu().numpy().tobytes() + content).hexdigest()
        shape = list(self.sample_shape)
        return [self.name, len(self), shape, list(self.augment), self.mean, self.std, digest]

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> "TensorData":
        """The same data on `device`, with batches of `dtype` if that is given."""
        return replace(self, x=self.x.to(device), y=self.y.to(device), dtype=dtype or self.dtype)

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
            `[B, *sample_shape]` of `dtype`: uint8 images divided by 255, standardised where mean and std are
            set; and int64 labels `[B]`.
        """
        indices = indices.to(self.x.device)
        # index_select copies, so what follows may work in place.
        x = self.x.index_select(0, indices)
        if generator is not None and self.augment:
            # Before the conversion to float: a quarter of the bytes to move.
            x = augment(x, self.augment, generator)
        pixels = x.dtype == torch.uint8
        x = x.to(self.dtype)
        if pixels:
            x.div_(255)
        if self._centre is not None and self._scale is not None:
            x.sub_(self._centre).div_(self._scale)
        return x, self.y.index_select(0, indices)


def _flat_labels(x: Tensor, y: Tensor) -> str:
    """How labels with a second dimension become labels `[N]`."""
    if y.ndim != 2 or len(x) != len(y):
        return ""
    return "; use y.squeeze(1)" if y.shape[1] == 1 else "; of one-hot rows take y.argmax(1)"
