"""Batched image augmentations, run on the device that holds the images.

Random numbers are drawn apart from being applied: `draw_*` ask a generator, while `flip`, `crop` and `shift`
are plain functions of the images and of what was drawn.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from bpfree._errors import BadValue

CROP_PIXELS = 4
SHIFT_PIXELS = 2


def draw_flips(n: int, generator: Generator) -> Tensor:
    """Toss a fair coin per sample: bool `[n]`, on the generator's device."""
    return torch.randint(2, (n,), generator=generator, device=generator.device, dtype=torch.bool)


def draw_offsets(n: int, reach: int, generator: Generator) -> Tensor:
    """Draw (down, right) offsets per sample, uniform in `-reach..reach` pixels: int64 `[n, 2]`."""
    return torch.randint(-reach, reach + 1, (n, 2), generator=generator, device=generator.device)


def flip(x: Tensor, flipped: Tensor) -> Tensor:
    """Mirror left and right the images `[N, C, H, W]` for which `flipped` (bool `[N]`) is true."""
    return torch.where(flipped[:, None, None, None], x.flip(-1), x)


def crop(x: Tensor, offsets: Tensor) -> Tensor:
    """Crop each image back to its own size from its reflected surroundings.

    `x` is `[N, C, H, W]` and `offsets` int64 `[N, 2]`: how far (down, right) the window lies from the centre,
    at most `CROP_PIXELS`. Raises BadValue for images too small to be reflected that far.
    """
    height, width = x.shape[-2:]
    if min(height, width) <= CROP_PIXELS:
        raise BadValue(
            f"image size {height}x{width}: 'crop' reflects {CROP_PIXELS} pixels, so it needs a height and a "
            f"width of at least {CROP_PIXELS + 1}; leave 'crop' out of augment"
        )
    rows = _reflect(_window(offsets[:, 0], height), height)
    columns = _reflect(_window(offsets[:, 1], width), width)
    return _gather(x, rows, columns)


def shift(x: Tensor, offsets: Tensor) -> Tensor:
    """Crop each image back to its own size from a border of zeros: for digits, where reflection adds strokes.

    `x` is `[N, C, H, W]` and `offsets` int64 `[N, 2]`: how far (down, right) the window lies from the centre,
    at most `SHIFT_PIXELS`.
    """
    height, width = x.shape[-2:]
    padded = F.pad(x, (SHIFT_PIXELS,) * 4)
    start = offsets + SHIFT_PIXELS
    return _gather(padded, _window(start[:, 0], height), _window(start[:, 1], width))


def _window(start: Tensor, size: int) -> Tensor:
    """The `size` positions that follow each start `[N]`: int64 `[N, size]`."""
    return start[:, None] + torch.arange(size, device=start.device)


def _reflect(position: Tensor, size: int) -> Tensor:
    """Fold positions outside `0..size-1` back inside, the edge pixel itself not repeated."""
    last = size - 1
    return last - (last - position.abs()).abs()


def _gather(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Take rows `[N, H]` and columns `[N, W]` of each image of `x`, giving `[N, C, H, W]`."""
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
"""The names for `TensorData.augment`. Each takes images `[N, C, H, W]` and a generator on their device."""


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the augmentation names as a tuple; raises BadValue for an unknown one."""
    names = (names,) if isinstance(names, str) else tuple(names)
    for name in names:
        if name not in AUGMENTATIONS:
            raise BadValue(f"augment {name!r} is not known; expected any of {', '.join(AUGMENTATIONS)}")
    return names


def augment(x: Tensor, names: Sequence[str], generator: Generator) -> Tensor:
    """Apply the named augmentations in turn to images `[N, C, H, W]`.

    Raises BadValue for a generator on another kind of device than the images.
    """
    if generator.device.type != x.device.type:
        raise BadValue(
            f"generator is on {generator.device}, the images are on {x.device}; "
            f"make it with torch.Generator(device={x.device.type!r})"
        )
    for name in names:
        x = AUGMENTATIONS[name](x, generator)
    return x
