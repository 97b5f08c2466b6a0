"""Labeled samples stored on one device, and batches of them."""

import hashlib
import math
from dataclasses import dataclass, field, replace

import torch
from torch import Generator, Tensor

from bpfree._errors import BadValue
from bpfree.data._augment import augment, check_names


@dataclass(frozen=True, eq=False, repr=False)
class TensorData:
    """Labeled samples, stored on one device.

    Attributes:
        x: Images `[N, C, H, W]` of type uint8, or floating point samples `[N, ...]`.
        y: Class labels `[N]` of type int64, each in `0..n_classes-1`.
        n_classes: Number of classes.
        mean: Mean per channel (dimension 1 of `x`), subtracted from each batch. uint8 images are divided by
            255 first, so the unit is that of a pixel in [0, 1]. None, together with `std`: batches are not
            standardized.
        std: Standard deviation per channel, by which each batch is divided after `mean` is subtracted.
        augment: Names of the augmentations of training batches, in order. Only for `[N, C, H, W]` data.
        name: Name of the data in messages and reports.
        dtype: Floating point type of batches. Trainers set it to the type of their network.

    Raises:
        BadValue: If these values are inconsistent.
    """

    x: Tensor
    y: Tensor
    n_classes: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augment: tuple[str, ...] = ()
    name: str = "data"
    dtype: torch.dtype = torch.float32
    # Stored on the device: creating these tensors for every batch would synchronize host and device.
    _center: Tensor | None = field(init=False, default=None)
    _scale: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        for key in ("mean", "std"):
            object.__setattr__(self, key, self._values(key))
        self._check_samples()
        self._check_labels()
        self._check_standardization()
        object.__setattr__(self, "augment", check_names(self.augment))
        if self.augment and self.x.ndim != 4:
            raise BadValue(
                f"{self.name}: augment {self.augment} needs images [N, C, H, W], x is {list(self.x.shape)}; "
                "reshape x, or leave augment empty"
            )
        object.__setattr__(self, "_center", self._per_channel(self.mean))
        object.__setattr__(self, "_scale", self._per_channel(self.std))

    def _values(self, key: str) -> tuple[float, ...] | None:
        """`mean` or `std`, given as any sequence, as a tuple of floats."""
        given = getattr(self, key)
        if given is None:
            return None
        try:
            values = tuple(float(value) for value in given)
        except (TypeError, ValueError):
            raise BadValue(
                f"{self.name}: {key} is {given!r}; expected a tuple with one number for each channel of x"
            ) from None
        if not all(math.isfinite(value) for value in values):
            expected = "finite numbers" if key == "mean" else "finite numbers above 0"
            raise BadValue(f"{self.name}: {key} is {values}; expected {expected}")
        return values

    def _check_samples(self) -> None:
        x, y = self.x, self.y
        if x.layout != torch.strided or x.is_quantized or x.is_nested:
            kind = "quantized" if x.is_quantized else "nested" if x.is_nested else str(x.layout)
            raise BadValue(
                f"{self.name}: x is a {kind} tensor; expected a dense tensor; convert it with x.to_dense()"
            )
        if x.is_complex():
            raise BadValue(
                f"{self.name}: x is {x.dtype}; expected uint8 images or floats; pass the real and imaginary "
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
                f"{self.name}: y is {y.dtype} and has values that are not class labels; expected int64 "
                "class labels, one in 0..n_classes-1 for each sample"
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
            return "for 2 classes replace y by (y > 0).long()"
        if low < 0:
            return "relabel y, and leave out samples without a label"
        return "replace y by y - 1" if (low, high) == (1, self.n_classes) else "relabel y or raise n_classes"

    def _check_standardization(self) -> None:
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
                f"{self.name}: std is {self.std}; expected values above 0; a constant channel cannot be "
                "standardized: remove it, or leave mean and std out"
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
        """Whether training batches are augmented."""
        return bool(self.augment)

    def content(self) -> list[object]:
        """Values that identify the data: name, size, preprocessing, and a hash of labels and samples."""
        some = self.x[:: max(1, len(self) // 64)].contiguous().cpu()
        # NumPy has no bfloat16, so the samples are viewed as bytes.
        samples = some.flatten().view(torch.uint8).numpy().tobytes()
        digest = hashlib.sha256(self.y.cpu().numpy().tobytes() + samples).hexdigest()
        shape = list(self.sample_shape)
        return [self.name, len(self), shape, list(self.augment), self.mean, self.std, digest]

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> "TensorData":
        """Return the same data on `device`, with batches of type `dtype` if it is given."""
        return replace(self, x=self.x.to(device), y=self.y.to(device), dtype=dtype or self.dtype)

    def take(self, indices: Tensor) -> "TensorData":
        """Return data with the samples at `indices` (int64 `[M]`, on any device), in that order."""
        indices = indices.to(self.x.device)
        return replace(self, x=self.x.index_select(0, indices), y=self.y.index_select(0, indices))

    def batch(self, indices: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return the samples at `indices` as a batch for a model.

        Args:
            indices: int64 `[B]`. Indices on another device than the data are copied first.
            generator: Generator on the data's device. The batch is augmented if it is given (training), and
                not augmented if it is None.

        Returns:
            Samples `[B, *sample_shape]` of type `dtype`, where uint8 images are divided by 255, and all
            samples are standardized if `mean` and `std` are set; and int64 labels `[B]`.
        """
        indices = indices.to(self.x.device)
        # index_select copies, so the operations below may work in place.
        x = self.x.index_select(0, indices)
        if generator is not None and self.augment:
            # Before the conversion to float, because uint8 moves a quarter of the bytes.
            x = augment(x, self.augment, generator)
        pixels = x.dtype == torch.uint8
        x = x.to(self.dtype)
        if pixels:
            x.div_(255)
        if self._center is not None and self._scale is not None:
            x.sub_(self._center).div_(self._scale)
        return x, self.y.index_select(0, indices)


def _flat_labels(x: Tensor, y: Tensor) -> str:
    """Hint for labels with a second dimension."""
    if y.ndim != 2 or len(x) != len(y):
        return ""
    return "; use y.squeeze(1)" if y.shape[1] == 1 else "; for one-hot rows use y.argmax(1)"
