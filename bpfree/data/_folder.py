"""Folders of image files, one folder per class, decoded once into a uint8 tensor."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bpfree._errors import BadValue, DataNotFound

LAYOUT = "train/<class>/<image file> and test/<class>/<image file>"

_MAX_THREADS = 8
_FILES_PER_TASK = 256


def read_folder(
    folder: Path, image_size: int | tuple[int, int] | None
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], int]:
    """Decode the images below `folder`, laid out as `LAYOUT`; grey ones become RGB.

    Args:
        folder: holds `train` and `test`.
        image_size: (height, width) in pixels, or one number for both, to resize to; None keeps the files' own
            size.

    Returns:
        (x, y) for train and for test, uint8 `[N, 3, H, W]` and int64 `[N]`; and the number of classes, which
        are numbered in the order of their folders' names.

    Raises DataNotFound where a folder is missing or has no images; BadValue where images differ in size and
    no `image_size` is given, where one cannot be decoded, or where train and test have different classes.
    """
    train, test = _list(folder, "train"), _list(folder, "test")
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise BadValue(
            f"classes {odd} are in only one of {folder}/train and {folder}/test; expected the same in both"
        )
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if size is not None and min(size) < 1:
        raise BadValue(f"image_size is {image_size}; expected at least 1 pixel each way")
    resize = size is not None
    size = size or _size(train.samples[0][0])
    return _decode(train.samples, size, resize), _decode(test.samples, size, resize), len(train.classes)


def _list(folder: Path, part: str) -> Any:
    from torchvision.datasets import ImageFolder

    try:
        return ImageFolder(folder / part)
    except FileNotFoundError as error:
        raise DataNotFound(
            f"image_folder: no images in {folder / part}: expected {LAYOUT} in {folder} ({error}); "
            "give path= relative to root, or absolute"
        ) from error


def _size(file: str) -> tuple[int, int]:
    """(height, width) of an image file, in pixels."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            return image.height, image.width
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: str, error: OSError) -> BadValue:
    return BadValue(f"image {file} cannot be decoded ({error}); replace or remove it")


def _decode(samples: list[tuple[str, int]], size: tuple[int, int], resize: bool) -> tuple[Tensor, Tensor]:
    """Decode (file, label) pairs, in a few threads, to uint8 `[N, 3, H, W]` and int64 `[N]`."""
    import numpy as np
    from PIL import Image

    height, width = size
    x = np.empty((len(samples), 3, height, width), dtype=np.uint8)

    def decode(start: int) -> None:
        for i, (file, _) in enumerate(samples[start : start + _FILES_PER_TASK], start):
            try:
                with Image.open(file) as opened:
                    image = opened.convert("RGB")
            except OSError as error:
                raise _unreadable(file, error) from error
            if resize:
                image = image.resize((width, height), Image.Resampling.BILINEAR)
            elif image.size != (width, height):
                raise BadValue(
                    f"image {file} is {image.height}x{image.width}, others are {height}x{width}; "
                    "expected one size; give image_size= to resize them all"
                )
            x[i] = np.asarray(image).transpose(2, 0, 1)

    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        # Draining the results raises the first error, and cancels what has not begun.
        for _ in pool.map(decode, range(0, len(samples), _FILES_PER_TASK)):
            pass
    return torch.from_numpy(x), torch.tensor([label for _, label in samples])
