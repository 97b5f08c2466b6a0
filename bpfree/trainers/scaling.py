"""`Scaling`: all samples are scaled as the training data of a model were."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bpfree._errors import BadValue
from bpfree._types import JsonMapping
from bpfree.data import TensorData

#: Images with larger values are assumed to be in 0..255, and not in 0..1 with noise.
BRIGHT = 8.0

#: Number of samples for the check of whether they are standardized already.
CHECKED_SAMPLES = 1024


@dataclass(frozen=True)
class Scaling:
    """The scaling of the training samples of a model.

    Attributes:
        uint8: Whether they are uint8 images, which are divided by 255.
        unit: Whether all values, after that, are in [0, 1].
        mean: Mean per channel, which is then subtracted; None, together with ``std``: not standardized.
        std: Standard deviation per channel, by which samples are then divided.
    """

    uint8: bool
    unit: bool
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    @classmethod
    def of(cls, data: TensorData) -> Scaling:
        """The scaling of the training data ``data``."""
        uint8 = data.x.dtype == torch.uint8
        return cls(uint8, uint8 or _in_unit(data.x), data.mean, data.std)

    def state(self) -> dict[str, object]:
        """The values, as JSON can represent them."""
        return {"uint8": self.uint8, "unit": self.unit, "mean": self.mean, "std": self.std}

    @classmethod
    def from_state(cls, state: JsonMapping) -> Scaling:
        """The scaling with this result of `state`."""
        mean, std = (None if state[key] is None else tuple(state[key]) for key in ("mean", "std"))
        return cls(state["uint8"], state["unit"], mean, std)

    def apply(self, data: TensorData) -> TensorData:
        """``data`` with the mean and standard deviation of the training data.

        Raises:
            BadValue: If the data have other statistics, or another range of pixels.
        """
        self._check_pixels(data)
        if data.mean is None or data.std is None:
            if self.mean is None:
                return data
            scaled = replace(data, mean=self.mean, std=self.std)
            _warn_if_standardized(data, scaled)
            return scaled
        if self.mean is None or self.std is None:
            raise BadValue(
                f"{data.name}: standardized by mean {_short(data.mean)} and std {_short(data.std)}, but the "
                "model was trained on data without standardization; leave mean and std out, or train on "
                "standardized data"
            )
        if not _close(data.mean, self.mean) or not _close(data.std, self.std):
            raise BadValue(
                f"{data.name}: standardized by mean {_short(data.mean)} and std {_short(data.std)}, but the "
                f"model was trained with mean {_short(self.mean)} and std {_short(self.std)}; leave mean and "
                "std out, so that those of the model are used"
            )
        return data

    def _check_pixels(self, data: TensorData) -> None:
        x = data.x
        if x.dtype == torch.uint8:
            if not self.unit:
                raise BadValue(
                    f"{data.name}: x is uint8, which is divided by 255, but the model was trained on floats "
                    "outside of 0..1; pass floats on the scale of the training data, for example x.float()"
                )
        elif self.unit and x.ndim == 4 and x.max() > BRIGHT:
            trained = "uint8 images, divided by 255" if self.uint8 else "images in 0..1"
            raise BadValue(
                f"{data.name}: x is {x.dtype} with values up to {x.max():.4g}, but the model was trained on "
                f"{trained}; pass uint8 images, or floats in 0..1"
            )


def _in_unit(x: Tensor) -> bool:
    low, high = torch.aminmax(x)
    return bool(low >= 0) and bool(high <= 1)


def _close(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return len(a) == len(b) and all(
        math.isclose(x, y, rel_tol=1e-6, abs_tol=1e-9) for x, y in zip(a, b, strict=True)
    )


def _short(values: tuple[float, ...]) -> str:
    first = ", ".join(f"{value:.4g}" for value in values[:3])
    return f"({first}{', ...' if len(values) > 3 else ''})"


def _warn_if_standardized(data: TensorData, scaled: TensorData) -> None:
    """Warn if samples have mean 0 and standard deviation 1 before they are standardized, and not after."""
    if data.x.dtype == torch.uint8 or data.x.transpose(0, 1)[0].numel() < 16:
        return
    indices = torch.arange(min(CHECKED_SAMPLES, len(data)), device=data.x.device)
    (before, deviation), (after, _) = (_moments(d.batch(indices)[0]) for d in (data, scaled))
    if before < 0.25 and 0.5 < deviation < 2 and after > 0.5:
        warnings.warn(
            f"{data.name}: x has mean 0 and standard deviation 1 already, and is standardized once more by "
            "the statistics of the model's training data; pass raw samples, or TensorData with the training "
            "data's mean and std",
            stacklevel=5,
        )


def _moments(x: Tensor) -> tuple[float, float]:
    """Root mean square, over channels, of the means and of the standard deviations."""
    deviation, mean = torch.std_mean(x.transpose(0, 1).flatten(1).double(), 1, correction=0)
    return mean.square().mean().sqrt().item(), deviation.square().mean().sqrt().item()
