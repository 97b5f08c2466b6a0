"""From numbers to a device's drive: small fixed functions in front of a physical layer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfree._errors import BadValue


class Drive(nn.Module):
    """Rows ``[B, d]`` to drives ``[B, n_in]``. The base of the others: the rows as they are.

    Rows narrower than the device are filled up with zeros in the unit of the rows.

    Args:
        n_in: Values that the device takes.
        input_range: (lowest, highest) of them; drives that are made in [0, 1] are mapped to it.
    """

    def __init__(self, n_in: int, input_range: tuple[float, float]) -> None:
        super().__init__()
        self.n_in, (self.low, self.high) = n_in, input_range

    def forward(self, rows: Tensor) -> Tensor:
        return self.filled(rows)

    def filled(self, rows: Tensor) -> Tensor:
        """Zeros behind the rows up to `n_in`.

        Raises:
            BadValue: If the rows are wider than the device.
        """
        if rows.shape[1] > self.n_in:
            raise BadValue(
                f"rows of {rows.shape[1]} values do not fit a device that takes {self.n_in}: "
                "fewer inputs, narrower layers, or a larger device"
            )
        return F.pad(rows, (0, self.n_in - rows.shape[1]))

    def ranged(self, drive: Tensor) -> Tensor:
        """[0, 1] to the device's range."""
        return self.low + (self.high - self.low) * drive

    def extra_repr(self) -> str:
        return f"n_in={self.n_in}, input_range=({self.low}, {self.high})"


class UnitNorm(Drive):
    """``|h| / |h|_2``, all of unit length; the sign is lost to the device."""

    def forward(self, rows: Tensor) -> Tensor:
        return self.ranged(self.filled(rows.abs() / (rows.norm(dim=1, keepdim=True) + 1e-6)))


class Clipped(Drive):
    """-3 to 3, the spread of standardised features, to the range of the device; what is beyond is cut."""

    def forward(self, rows: Tensor) -> Tensor:
        return self.ranged(self.filled((rows.clamp(-3.0, 3.0) + 3.0) / 6.0))


class MinMax(Drive):
    """``(h - min h) / (max h - min h)`` of each row."""

    def forward(self, rows: Tensor) -> Tensor:
        return self.ranged(self.filled(self.scaled(rows)))

    def scaled(self, rows: Tensor) -> Tensor:
        """Rows in [0, 1]."""
        low = rows.amin(1, keepdim=True)
        return (rows - low) / (rows.amax(1, keepdim=True) - low + 1e-12)


class TwoBit(MinMax):
    """Two bits for each min-max scaled value: 0 is 00, (0, 1/4] 01, (1/4, 3/4] 10, above 11.

    For elements with two states. Where a gradient is asked for, it is that of the scaled value.
    """

    def forward(self, rows: Tensor) -> Tensor:
        value = self.scaled(rows)
        high, top, low = value > 0.25, value > 0.75, value > 0
        bits = torch.stack([high, torch.where(high, top, low)], 2).to(value.dtype)
        smooth = value.unsqueeze(2)
        if value.requires_grad:
            bits = bits + (smooth - smooth.detach())
        return self.ranged(self.filled(bits.flatten(1)))


class Picture(Drive):
    """A square picture that fills the device: for light modulators.

    Of rows that still hold the C label slots and an image, each slot becomes a line above the image and,
    where there is room, one below it; that is set side by side until it is about as wide as high. Other
    rows are laid out as a square. Whole multiples enlarge the picture as far as it fits, what is too wide
    is cut off, the rest of the device stays dark. Values are divided by the row's largest magnitude.

    Args:
        n_in: A square number: values of the device.
        input_range: See `Drive`; from -1 on for signed amplitudes, otherwise magnitudes are shown.
        image: (C, height, width) where rows are slots and an image, else None.
    """

    def __init__(
        self, n_in: int, input_range: tuple[float, float], image: tuple[int, int, int] | None = None
    ) -> None:
        super().__init__(n_in, input_range)
        self.side, self.image = math.isqrt(n_in), image
        if self.side**2 != n_in:
            raise BadValue(f"a picture drives a square device, not one of {n_in} values")
        if image is not None and image[0] + image[1] > self.side:
            raise BadValue(
                f"{image[0]} label lines and {image[1]} rows of pixels: the device has {self.side} lines"
            )

    def forward(self, rows: Tensor) -> Tensor:
        rows = rows / (rows.abs().amax(1, keepdim=True) + 1e-12)
        picture = self._laid_out(rows)
        height, width = picture.shape[1:]
        if height > self.side:
            raise BadValue(f"{rows.shape[1]} values do not fit a device of {self.n_in}: narrower layers")
        times = max(1, self.side // max(height, width))
        picture = picture.repeat_interleave(times, 1).repeat_interleave(times, 2)[:, : self.side, : self.side]
        height, width = picture.shape[1:]
        top, left = (self.side - height) // 2, (self.side - width) // 2
        shown = F.pad(picture, (left, self.side - width - left, top, self.side - height - top)).flatten(1)
        return shown if self.low < 0 else self.ranged(shown.abs())

    def _laid_out(self, rows: Tensor) -> Tensor:
        if self.image is None:
            side = math.ceil(math.sqrt(rows.shape[1]))
            return F.pad(rows, (0, side * side - rows.shape[1])).view(-1, side, side)
        slots, height, width = self.image
        lines = rows[:, :slots].unsqueeze(2).expand(-1, -1, width)
        below = [lines] if height + 2 * slots <= self.side else []
        picture = torch.cat([lines, rows[:, slots:].view(-1, height, width), *below], 1)
        return picture.repeat(1, 1, max(1, round(picture.shape[1] / width)))

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
