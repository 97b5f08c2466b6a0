"""Folders of image files with one folder per class, decoded into a tensor."""

from __future__ import annotations

import os
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from bpfree._errors import BadValue, DataNotFound

if TYPE_CHECKING:
    from PIL import Image

LAYOUT = "train/<class>/<image file> and test/<class>/<image file>"

#: Files that file managers create.
_LITTER = ("thumbs.db", "desktop.ini")
#: Errors that Pillow raises for damaged files, and for formats that it supports in part.
_DAMAGED = (OSError, ValueError, SyntaxError, EOFError, OverflowError, struct.error)

_ORIENTATION = 0x0112  # the EXIF tag

_MAX_THREADS = 8
_FILES_PER_TASK = 256


def read_folder(
    folder: Path, image_size: int | tuple[int, int] | None
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], int]:
    """Decode the images below `folder`, which has the layout `LAYOUT`. Gray images are converted to RGB.

    Images are rotated according to their EXIF orientation. If any image is gray with 16 bits or has floating
    point values, all are returned as floats: 8-bit values divided by 255, 16-bit values divided by 65535, and
    floats unchanged.

    A warning is given for files that are not read, and for color images of which 8 of 16 bits are read.

    Args:
        folder: Folder that contains `train` and `test`.
        image_size: Size to resize images to, (height, width) in pixels or one number for both; None: images
            are not resized.

    Returns:
        (x, y) of the training set, (x, y) of the test set, and the number of classes. x is uint8, or float32
        in [0, 1], `[N, 3, H, W]`; y is int64 `[N]`. Classes are numbered in the order of their folders'
        names.

    Raises:
        DataNotFound: If a folder is missing or has no images.
        BadValue: If images differ in size and `image_size` is None; if an image cannot be decoded, is hidden,
            or has several frames, transparent pixels or values of unknown range; or if training and test sets
            have different classes.
    """
    size = _checked_size(image_size)
    train, test = _list(folder, "train"), _list(folder, "test")
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise BadValue(
            f"classes {odd} are in only one of {folder}/train and {folder}/test; expected the same classes "
            "in both; add or remove class folders"
        )
    _check_all_read(folder, [file for part in (train, test) for file, _ in part.samples])
    first, _ = _open(train.samples[0][0])
    resize = size is not None
    size = size or (first.height, first.width)
    parts = (train.samples, test.samples)
    try:
        dtype = "uint8" if first.mode == "RGB" else "float32"
        train_part, test_part = (_decode(part, size, resize, dtype) for part in parts)
    except _MoreThan8Bits:
        train_part, test_part = (_decode(part, size, resize, "float32") for part in parts)
    n_truncated = train_part[2] + test_part[2]
    if n_truncated:
        warnings.warn(
            f"{n_truncated} color images below {folder} have 16 bits, of which the upper 8 are read; if "
            "fewer than 16 bits are used, save the images with 8 bits",
            stacklevel=3,
        )
    return train_part[:2], test_part[:2], len(train.classes)


class _Listing(Protocol):
    """What this module uses of torchvision's ImageFolder."""

    classes: list[str]
    samples: list[tuple[str, int]]


def _checked_size(image_size: int | tuple[int, int] | list[int] | None) -> tuple[int, int] | None:
    if image_size is None:
        return None
    size = tuple(image_size) if isinstance(image_size, list | tuple) else (image_size, image_size)
    if len(size) != 2 or not all(isinstance(n, int) and n >= 1 for n in size):
        raise BadValue(
            f"image_size is {image_size}; expected (height, width) or one number, in pixels, at least 1"
        )
    return size


def _list(folder: Path, part: str) -> _Listing:
    from torchvision.datasets import ImageFolder

    try:
        found: _Listing = ImageFolder(folder / part)
    except FileNotFoundError as error:
        raise DataNotFound(
            f"image_folder has no images in {folder / part}; expected {LAYOUT} in {folder} ({error}); "
            "set path to that folder, absolute or relative to root"
        ) from error
    return found


def _check_all_read(folder: Path, read: list[str]) -> None:
    """Check that no image is hidden, and warn about visible files that are not read.

    Raises:
        BadValue: If an image is hidden.
    """
    hidden = [file for file in read if any(name[0] == "." for name in Path(file).relative_to(folder).parts)]
    if hidden:
        raise BadValue(
            f"image {hidden[0]} and {len(hidden) - 1} others are hidden, because a name begins with a dot; "
            "remove or rename them"
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


class _MoreThan8Bits(Exception):
    """An image does not fit into uint8."""


def _open(file: str) -> tuple[Image.Image, bool]:
    """Open and rotate an image file.

    Returns:
        The image, of mode "RGB" with 8 bits, or of mode "F" with gray levels in [0, 1] if the file has more
        bits; and whether colors were truncated from 16 bits to 8.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            frames = getattr(opened, "n_frames", 1)
            # Further frames of a camera's MPO file are previews, or the same scene from another position.
            if frames > 1 and opened.format != "MPO":
                raise BadValue(
                    f"image {file} has {frames} frames; expected one; save each frame in a file of its own"
                )
            truncated = any(";16" in str(tile[3]) for tile in opened.tile) and "RGB" in opened.mode
            upright = opened.getexif().get(_ORIENTATION, 1) == 1
            image = opened if upright else ImageOps.exif_transpose(opened)
            return (_gray_levels(file, image, opened.format) or _to_rgb(file, image)), truncated
    except BadValue:
        raise
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        raise BadValue(f"image {file} cannot be decoded ({error}); replace or remove it") from error


def _gray_levels(file: str, image: Image.Image, format: str | None) -> Image.Image | None:
    """Gray levels in [0, 1] of an image with more than 8 bits; None if it has 8 bits or fewer."""
    import numpy as np
    from PIL import Image

    if image.mode != "F" and image.mode[0] != "I":
        return None
    values = np.asarray(image).astype(np.float32)
    # Some versions of Pillow read 16-bit PNG and PGM files as 32-bit integers.
    if image.mode != "F" and (image.mode != "I" or format in ("PNG", "PPM")):
        values /= 65535
    if not (values.min() >= 0 and values.max() <= 1):
        raise BadValue(
            f"image {file} has values from {values.min():.4g} to {values.max():.4g} (mode {image.mode!r}), "
            "and the values of black and white are unknown; save it with 8 or 16 bits, or as floats in [0, 1]"
        )
    return Image.fromarray(values)


def _to_rgb(file: str, image: Image.Image) -> Image.Image:
    """Convert an image with 8 bits or fewer to RGB.

    Raises:
        BadValue: If it has transparent pixels.
    """
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        opaque = image.convert("RGBA").getchannel("A").getextrema()[0]
        if opaque != 255:
            raise BadValue(
                f"image {file} has transparent pixels, whose color depends on the background; compose it "
                "with a background (PIL.Image.alpha_composite), and save it without transparency"
            )
    return image.convert("RGB")


def _decode(
    samples: list[tuple[str, int]], size: tuple[int, int], resize: bool, dtype: str
) -> tuple[Tensor, Tensor, int]:
    """Decode (file, label) pairs with several threads.

    Returns:
        Images `[N, 3, H, W]` of type `dtype`, labels int64 `[N]`, and the number of images whose colors were
        truncated from 16 bits to 8.

    Raises:
        _MoreThan8Bits: If `dtype` is uint8 and an image has more than 8 bits.
    """
    import numpy as np
    from PIL import Image

    height, width = size
    x = np.empty((len(samples), 3, height, width), dtype=dtype)

    def decode(start: int) -> int:
        n_truncated = 0
        for i, (file, _) in enumerate(samples[start : start + _FILES_PER_TASK], start):
            image, truncated = _open(file)
            n_truncated += truncated
            if resize:
                image = image.resize((width, height), Image.Resampling.BILINEAR)
            elif image.size != (width, height):
                raise BadValue(
                    f"image {file} is {image.height}x{image.width}, others are {height}x{width}; "
                    "expected equal sizes; set image_size to resize all images"
                )
            if image.mode == "F":
                if dtype == "uint8":
                    raise _MoreThan8Bits
                x[i] = np.asarray(image)
            else:
                x[i] = np.asarray(image).transpose(2, 0, 1)
                if dtype == "float32":
                    x[i] /= 255
        return n_truncated

    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        # Iterating over the results raises the first error, and cancels tasks that have not started.
        n_truncated = sum(pool.map(decode, range(0, len(samples), _FILES_PER_TASK)))
    return torch.from_numpy(x), torch.tensor([label for _, label in samples]), n_truncated
