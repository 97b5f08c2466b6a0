"""Image augmentations of whole batches, on the device of the images.

Drawing random numbers and applying them are separate: `draw_*` use a generator, while `flip`, `crop` and
`shift` are deterministic functions of the images and of the drawn numbers.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from bpfree._errors import BadValue

CROP_PIXELS = 4
SHIFT_PIXELS = 2


def draw_flips(n: int, generator: Generator) -> Tensor:
    """Draw one bool per sample, True with probability 1/2: `[n]`, on the generator's device."""
    return torch.randint(2, (n,), generator=generator, device=generator.device, dtype=torch.bool)


def draw_offsets(n: int, reach: int, generator: Generator) -> Tensor:
    """Draw (down, right) offsets per sample, uniform in `-reach..reach` pixels: int64 `[n, 2]`."""
    return torch.randint(-reach, reach + 1, (n, 2), generator=generator, device=generator.device)


def flip(x: Tensor, flipped: Tensor) -> Tensor:
    """Mirror the images of `x` `[N, C, H, W]` horizontally where `flipped` (bool `[N]`) is True."""
    return torch.where(flipped[:, None, None, None], x.flip(-1), x)


def crop(x: Tensor, offsets: Tensor) -> Tensor:
    """Crop each image to its own size, with padding by reflection.

    Args:
        x: Images `[N, C, H, W]`.
        offsets: Offsets (down, right) of the crop from the center, int64 `[N, 2]`, at most `CROP_PIXELS`.

    Raises:
        BadValue: If the images are too small for the padding.
    """
    height, width = x.shape[-2:]
    if min(height, width) <= CROP_PIXELS:
        raise BadValue(
            f"image size is {height}x{width}; 'crop' pads by {CROP_PIXELS} reflected pixels and expects a "
            f"height and a width of at least {CROP_PIXELS + 1}; leave 'crop' out of augment"
        )
    rows = _reflect(_window(offsets[:, 0], height), height)
    columns = _reflect(_window(offsets[:, 1], width), width)
    return _gather(x, rows, columns)


def shift(x: Tensor, offsets: Tensor) -> Tensor:
    """Crop each image to its own size, with padding by zeros.

    Suited to digits, where padding by reflection would add strokes.

    Args:
        x: Images `[N, C, H, W]`.
        offsets: Offsets (down, right) of the crop from the center, int64 `[N, 2]`, at most `SHIFT_PIXELS`.
    """
    height, width = x.shape[-2:]
    padded = F.pad(x, (SHIFT_PIXELS,) * 4)
    start = offsets + SHIFT_PIXELS
    return _gather(padded, _window(start[:, 0], height), _window(start[:, 1], width))


def _window(start: Tensor, size: int) -> Tensor:
    """The `size` consecutive positions from each start `[N]` on: int64 `[N, size]`."""
    return start[:, None] + torch.arange(size, device=start.device)


def _reflect(position: Tensor, size: int) -> Tensor:
    """Reflect positions outside `0..size-1` at the edge pixels, which are not repeated."""
    last = size - 1
    return last - (last - position.abs()).abs()


def _gather(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Select rows `[N, H]` and columns `[N, W]` of each image of `x`: `[N, C, H, W]`."""
    n, channels, _, width = x.shape
    pixels = rows[:, :, None] * width + columns[:, None, :]
    taken = x.flatten(2).gather(2, pixels.view(n, 1, -1).expand(-1, channels, -1))
    return taken.view(n, channels, rows.shape[1], columns.shape[1])


def _random_flip(x: Tensor, generator: Generator) -> Tensor:
    return flip(x, draw_flips(len(x), generator))


def _random_crop(x: Tensor, generator: Generator) -> Tensor:
    return crop(x, draw_offsets(len(x), CROP_PIXELS, generator))


def _random_shift(x: Tensor, generator: Generator) -> Tensor:
    return shift(x, draw_offsets(len(x), SHIFT_PIXELS, generator))


AUGMENTATIONS: dict[str, Callable[[Tensor, Generator], Tensor]] = {
    "flip": _random_flip,
    "crop": _random_crop,
    "shift": _random_shift,
}
"""Augmentations by name, for `TensorData.augment`: functions of images `[N, C, H, W]` and a generator."""


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of augmentations as a tuple.

    Raises:
        BadValue: If a name is unknown.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    for name in names:
        if name not in AUGMENTATIONS:
            raise BadValue(
                f"augment has the unknown name {name!r}; expected any of {', '.join(AUGMENTATIONS)}"
            )
    return names


def augment(x: Tensor, names: Sequence[str], generator: Generator) -> Tensor:
    """Apply the augmentations `names` in order to images `[N, C, H, W]`.

    Raises:
        BadValue: If the generator is on another type of device than the images.
    """
    if generator.device.type != x.device.type:
        raise BadValue(
            f"the generator is on {generator.device} and the images are on {x.device}; "
            f"create it with torch.Generator(device={x.device.type!r})"
        )
    for name in names:
        x = AUGMENTATIONS[name](x, generator)
    return x
