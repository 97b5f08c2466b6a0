"""Fixed functions that compute the drives of a physical device from the inputs of a layer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfree._errors import BadValue


class Drive(nn.Module):
    """Inputs ``[B, d]`` to drives ``[B, n_in]``. This base class pads the inputs and changes no value.

    Inputs with fewer values than the device are padded with zeros before they are mapped to the input range.

    Args:
        n_in: Number of input values of the device.
        input_range: ``(low, high)``, the input range of the device.
    """

    def __init__(self, n_in: int, input_range: tuple[float, float]) -> None:
        super().__init__()
        self.n_in, (self.low, self.high) = n_in, input_range

    def forward(self, x: Tensor) -> Tensor:
        return self.pad(x)

    def pad(self, x: Tensor) -> Tensor:
        """Append zeros to each row until it has `n_in` values.

        Raises:
            BadValue: If the rows have more values than the device.
        """
        if x.shape[1] > self.n_in:
            raise BadValue(
                f"rows of {x.shape[1]} values do not fit a device of {self.n_in} inputs: "
                "use fewer inputs, narrower layers, or a larger device"
            )
        return F.pad(x, (0, self.n_in - x.shape[1]))

    def to_range(self, drive: Tensor) -> Tensor:
        """Map values in [0, 1] linearly to the input range of the device."""
        return self.low + (self.high - self.low) * drive

    def extra_repr(self) -> str:
        return f"n_in={self.n_in}, input_range=({self.low}, {self.high})"


class UnitNorm(Drive):
    """``|h| / (|h|_2 + 1e-6)``: all drives have the same length, and the sign is lost."""

    def forward(self, x: Tensor) -> Tensor:
        return self.to_range(self.pad(x.abs() / (x.norm(dim=1, keepdim=True) + 1e-6)))


class Clipped(Drive):
    """Clips the inputs to [-3, 3] and maps this interval to the input range: for standardized features."""

    def forward(self, x: Tensor) -> Tensor:
        return self.to_range(self.pad((x.clamp(-3.0, 3.0) + 3.0) / 6.0))


class MinMax(Drive):
    """``(h - min h) / (max h - min h)`` of each row."""

    def forward(self, x: Tensor) -> Tensor:
        return self.to_range(self.pad(self.scale(x)))

    def scale(self, x: Tensor) -> Tensor:
        """Scale each row to [0, 1]."""
        low = x.amin(1, keepdim=True)
        return (x - low) / (x.amax(1, keepdim=True) - low + 1e-12)


class TwoBit(MinMax):
    """Two bits for each min-max scaled value: 0 is 00, (0, 1/4] is 01, (1/4, 3/4] is 10, above is 11.

    For devices with binary inputs. The gradient is that of the scaled value (straight-through).
    """

    def forward(self, x: Tensor) -> Tensor:
        value = self.scale(x)
        high, top, low = value > 0.25, value > 0.75, value > 0
        bits = torch.stack([high, torch.where(high, top, low)], 2).to(value.dtype)
        smooth = value.unsqueeze(2)
        if value.requires_grad:
            bits = bits + (smooth - smooth.detach())
        return self.to_range(self.pad(bits.flatten(1)))


class Picture(Drive):
    """Arranges each row as a square image for a spatial light modulator.

    With ``image``, a row is C label slots followed by an image. Each slot becomes a line of constant value
    above the image and, if there is room, a second one below it; copies of the result are put side by side
    until it is about as wide as high. Without ``image``, a row is reshaped to a square, padded with zeros.
    The result is enlarged by the largest whole factor that fits, cropped on the right, centered, and padded
    with zeros. Values are divided by the largest magnitude of their row.

    Args:
        n_in: Number of input values of the device, a square number.
        input_range: See `Drive`. If its lower end is negative, the drive is signed; otherwise it is the
            magnitude.
        image: ``(C, height, width)`` if rows are label slots and an image, else None.

    Raises:
        BadValue: If ``n_in`` is not a square number, or the image is too high.
    """

    def __init__(
        self, n_in: int, input_range: tuple[float, float], image: tuple[int, int, int] | None = None
    ) -> None:
        super().__init__(n_in, input_range)
        self.side, self.image = math.isqrt(n_in), image
        if self.side**2 != n_in:
            raise BadValue(f"drive = 'picture' needs a device with a square number of inputs, not {n_in}")
        if image is not None and image[0] + image[1] > self.side:
            raise BadValue(
                f"{image[0]} label lines and {image[1]} rows of pixels do not fit the {self.side} lines of "
                "the device; use a larger device or smaller images"
            )

    def forward(self, x: Tensor) -> Tensor:
        x = x / (x.abs().amax(1, keepdim=True) + 1e-12)
        if self.image is None:
            side = math.ceil(math.sqrt(x.shape[1]))
            picture = F.pad(x, (0, side * side - x.shape[1])).view(-1, side, side)
        else:
            slots, height, width = self.image
            lines = x[:, :slots].unsqueeze(2).expand(-1, -1, width)
            below = [lines] if height + 2 * slots <= self.side else []
            picture = torch.cat([lines, x[:, slots:].view(-1, height, width), *below], 1)
            picture = picture.repeat(1, 1, max(1, round(picture.shape[1] / width)))
        height, width = picture.shape[1:]
        if height > self.side:
            raise BadValue(
                f"{x.shape[1]} values do not fit a device of {self.n_in} inputs; use narrower layers"
            )
        factor = max(1, self.side // max(height, width))
        picture = picture.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
        picture = picture[:, : self.side, : self.side]
        height, width = picture.shape[1:]
        top, left = (self.side - height) // 2, (self.side - width) // 2
        drive = F.pad(picture, (left, self.side - width - left, top, self.side - height - top)).flatten(1)
        return drive if self.low < 0 else self.to_range(drive.abs())

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, image={self.image}"


DRIVES: dict[str, type[Drive]] = {
    "direct": Drive,
    "clipped": Clipped,
    "l2": UnitNorm,
    "minmax": MinMax,
    "two_bit": TwoBit,
    "picture": Picture,
}
