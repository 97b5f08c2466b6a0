"""Folders of image files, one folder per class, decoded once into a tensor."""

from __future__ import annotations

import os
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bpfree._errors import BadValue, DataNotFound

if TYPE_CHECKING:
    from PIL import Image

LAYOUT = "train/<class>/<image file> and test/<class>/<image file>"

#: Files that file managers leave behind.
_LITTER = ("thumbs.db", "desktop.ini")
#: What reading an image file raises where it is damaged, or of a kind that Pillow only half knows.
_DAMAGED = (OSError, ValueError, SyntaxError, EOFError, OverflowError, struct.error)

_ORIENTATION = 0x0112  # the EXIF tag

_MAX_THREADS = 8
_FILES_PER_TASK = 256


def read_folder(
    folder: Path, image_size: int | tuple[int, int] | None
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], int]:
    """Decode the images below `folder`, laid out as `LAYOUT`; grey ones become RGB.

    Pictures are turned upright as their EXIF orientation says. If any is grey with 16 bits or floating
    point, all are read as floats: 8 bits divided by 255, 16 bits by 65535, and floats as they are.

    Args:
        folder: holds `train` and `test`.
        image_size: (height, width) in pixels, or one number for both, to resize to; None keeps the files' own
            size.

    Returns:
        (x, y) for train and for test, uint8 or float32 in [0, 1] `[N, 3, H, W]` and int64 `[N]`; and the
        number of classes, which are numbered in the order of their folders' names.

    Raises DataNotFound where a folder is missing or has no images; BadValue where images differ in size and
    no `image_size` is given, where one cannot be decoded, is hidden, has several frames, transparent pixels
    or values of unknown range, or where train and test have different classes.

    Warns about files that are not read, and color images of which only 8 of 16 bits are.
    """
    size = _checked_size(image_size)
    train, test = _list(folder, "train"), _list(folder, "test")
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise BadValue(
            f"classes {odd} are in only one of {folder}/train and {folder}/test; expected the same in both"
        )
    _check_all_read(folder, [file for part in (train, test) for file, _ in part.samples])
    first, _ = _open(train.samples[0][0])
    resize = size is not None
    size = size or (first.height, first.width)
    parts = (train.samples, test.samples)
    try:
        dtype = "uint8" if first.mode == "RGB" else "float32"
        train_part, test_part = (_decode(part, size, resize, dtype) for part in parts)
    except _Deep:
        train_part, test_part = (_decode(part, size, resize, "float32") for part in parts)
    cut = train_part[2] + test_part[2]
    if cut:
        warnings.warn(
            f"{cut} color images below {folder} have 16 bits, of which the upper 8 are read; if fewer than "
            "16 are in use, save them with 8 bits",
            stacklevel=3,
        )
    return train_part[:2], test_part[:2], len(train.classes)


def _checked_size(image_size: Any) -> tuple[int, int] | None:
    if image_size is None:
        return None
    size = tuple(image_size) if isinstance(image_size, list | tuple) else (image_size, image_size)
    if len(size) != 2 or not all(isinstance(n, int) and n >= 1 for n in size):
        raise BadValue(
            f"image_size is {image_size}; expected (height, width) or one number, at least 1 pixel each way"
        )
    return size


def _list(folder: Path, part: str) -> Any:
    from torchvision.datasets import ImageFolder

    try:
        return ImageFolder(folder / part)
    except FileNotFoundError as error:
        raise DataNotFound(
            f"image_folder: no images in {folder / part}: expected {LAYOUT} in {folder} ({error}); "
            "give path= relative to root, or absolute"
        ) from error


def _check_all_read(folder: Path, read: list[str]) -> None:
    """Refuse hidden images, and warn about visible files that are no sample."""
    hidden = [file for file in read if any(name[0] == "." for name in Path(file).relative_to(folder).parts)]
    if hidden:
        raise BadValue(
            f"image {hidden[0]} is hidden, as are {len(hidden) - 1} others: a name begins with a dot; remove "
            "or rename them"
        )
    known, unread = set(read), []
    for part in ("train", "test"):
        for path, folders, files in os.walk(folder / part, followlinks=True):
            folders[:] = [name for name in folders if name[0] != "."]
            unread += [
                os.path.join(path, name)
                for name in files
                if name[0] != "." and name.lower() not in _LITTER and os.path.join(path, name) not in known
            ]
    if unread:
        warnings.warn(
            f"{len(unread)} files below {folder} are not read, such as {min(unread)}: expected {LAYOUT}, "
            "where image files end in .jpg, .jpeg, .png, .ppm, .bmp, .pgm, .tif, .tiff or .webp",
            stacklevel=3,
        )


class _Deep(Exception):
    """An image has more than 8 bits."""


def _open(file: str) -> tuple[Image.Image, bool]:
    """An image file, upright: 8-bit "RGB", or "F" of grey levels in [0, 1] where there are more bits.

    Also tells whether color was cut from 16 bits to 8.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            frames = getattr(opened, "n_frames", 1)
            # The further pictures of a camera's MPO file are previews, and the same from elsewhere.
            if frames > 1 and opened.format != "MPO":
                raise BadValue(
                    f"image {file} has {frames} frames, of which one would be read; save each in its own file"
                )
            cut = any(";16" in str(tile[3]) for tile in opened.tile) and "RGB" in opened.mode
            upright = opened.getexif().get(_ORIENTATION, 1) == 1
            image = opened if upright else ImageOps.exif_transpose(opened)
            return (_deep(file, image, opened.format) or _shallow(file, image)), cut
    except BadValue:
        raise
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        raise BadValue(f"image {file} cannot be decoded ({error}); replace or remove it") from error


def _deep(file: str, image: Image.Image, kind: str | None) -> Image.Image | None:
    """Grey levels in [0, 1] of an image with more than 8 bits; None for another."""
    import numpy as np
    from PIL import Image

    if image.mode != "F" and image.mode[0] != "I":
        return None
    values = np.asarray(image).astype(np.float32)
    # Pillow has 16-bit PNG and PGM files in 32-bit integers in some versions.
    if image.mode != "F" and (image.mode != "I" or kind in ("PNG", "PPM")):
        values /= 65535
    if not (values.min() >= 0 and values.max() <= 1):
        raise BadValue(
            f"image {file} has values from {values.min():.4g} to {values.max():.4g} ({image.mode!r}), of "
            "which black and white are not known; save it with 8 or 16 bits, or as floats in [0, 1]"
        )
    return Image.fromarray(values)


def _shallow(file: str, image: Image.Image) -> Image.Image:
    """An image of 8 bits or fewer in RGB."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        opaque = image.convert("RGBA").getchannel("A").getextrema()[0]
        if opaque != 255:
            raise BadValue(
                f"image {file} has transparent pixels, whose color depends on what is behind; lay it on a "
                "background, as by PIL.Image.alpha_composite, and save it without transparency"
            )
    return image.convert("RGB")


def _decode(
    samples: list[tuple[str, int]], size: tuple[int, int], resize: bool, dtype: str
) -> tuple[Tensor, Tensor, int]:
    """Decode (file, label) pairs, in a few threads, to `[N, 3, H, W]` of that dtype and int64 `[N]`.

    Also counts images whose color was cut from 16 bits to 8. Raises _Deep where one does not fit in uint8.
    """
    import numpy as np
    from PIL import Image

    height, width = size
    x = np.empty((len(samples), 3, height, width), dtype=dtype)

    def decode(start: int) -> int:
        cut = 0
        for i, (file, _) in enumerate(samples[start : start + _FILES_PER_TASK], start):
            image, lossy = _open(file)
            cut += lossy
            if resize:
                image = image.resize((width, height), Image.Resampling.BILINEAR)
            elif image.size != (width, height):
                raise BadValue(
                    f"image {file} is {image.height}x{image.width}, others are {height}x{width}; "
                    "expected one size; give image_size= to resize them all"
                )
            if image.mode == "F":
                if dtype == "uint8":
                    raise _Deep
                x[i] = np.asarray(image)
            else:
                x[i] = np.asarray(image).transpose(2, 0, 1)
                if dtype == "float32":
                    x[i] /= 255
        return cut

    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        # Draining the results raises the first error, and cancels what has not begun.
        cut = sum(pool.map(decode, range(0, len(samples), _FILES_PER_TASK)))
    return torch.from_numpy(x), torch.tensor([label for _, label in samples]), cut
