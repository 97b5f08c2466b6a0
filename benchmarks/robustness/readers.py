"""Folders of image files of every kind, and pairs of nodes: the data set equals the files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bpfree
from benchmarks.robustness._case import (
    ANY,
    REFUSED,
    RIGHT,
    RIGHT_OR_REFUSED,
    RIGHT_OR_WARNED,
    Case,
    Cases,
    Outcome,
)
from benchmarks.robustness._verdict import Watch
from bpfree.data import TensorData

registry = Cases()
SIDE = 6
#: Brightness of the images of the two classes, from 0 to 1.
BRIGHTNESS = (0.25, 0.7)


def _image(make: Callable[[float], Any], level: float, number: int) -> Any:
    return make(level + 0.01 * (number % 3))


def _folder(root: Path, make: Callable[[float], Any], suffix: str) -> None:
    for part in ("train", "test"):
        for k, level in enumerate(BRIGHTNESS):
            folder = root / part / f"class{k}"
            folder.mkdir(parents=True)
            for number in range(10):
                _image(make, level, number).save(folder / f"{number}{suffix}")


def _grey(dtype: Any, top: float, mode: str | None = None) -> Callable[[float], Any]:
    def make(level: float) -> Any:
        from PIL import Image

        pixels = np.full((SIDE, SIDE), level * top).astype(dtype)
        return Image.fromarray(pixels) if mode is None else Image.fromarray(pixels).convert(mode)

    return make


def _shifted(level: float) -> Any:
    """Gray values with 12 of 16 bits."""
    from PIL import Image

    return Image.fromarray(np.full((SIDE, SIDE), level * 4095).astype(np.uint16))


def _colored(mode: str) -> Callable[[float], Any]:
    def make(level: float) -> Any:
        from PIL import Image

        return Image.fromarray(np.full((SIDE, SIDE, 3), int(level * 255), np.uint8)).convert(mode)

    return make


def _transparent(level: float) -> Any:
    """One color; the pattern is in the transparency."""
    from PIL import Image

    pixels = np.full((SIDE, SIDE, 4), 255, np.uint8)
    pixels[..., 3] = int(level * 255)
    return Image.fromarray(pixels)


FILES: list[tuple[str, Callable[[float], Any], str, frozenset[Outcome]]] = [
    ("8-bit grey PNG", _grey(np.uint8, 255), ".png", RIGHT),
    ("RGB PNG", _colored("RGB"), ".png", RIGHT),
    ("palette PNG", _colored("P"), ".png", RIGHT),
    ("RGBA PNG", _colored("RGBA"), ".png", RIGHT_OR_WARNED | REFUSED),
    ("grey with alpha PNG", _colored("LA"), ".png", RIGHT_OR_WARNED | REFUSED),
    ("CMYK TIFF", _colored("CMYK"), ".tif", RIGHT_OR_REFUSED),
    ("16-bit grey PNG", _grey(np.uint16, 65535), ".png", RIGHT_OR_REFUSED),
    ("16-bit grey TIFF", _grey(np.uint16, 65535), ".tif", RIGHT_OR_REFUSED),
    ("12 bits of 16, TIFF", _shifted, ".tif", RIGHT_OR_WARNED | REFUSED),
    ("32-bit integer TIFF", _grey(np.int32, 65535), ".tif", RIGHT_OR_REFUSED),
    ("float TIFF of 0 to 1", _grey(np.float32, 1.0), ".tif", RIGHT_OR_REFUSED),
    ("float TIFF of 0 to 255", _grey(np.float32, 255.0), ".tif", RIGHT_OR_REFUSED | RIGHT_OR_WARNED),
    ("pattern in the transparency", _transparent, ".png", REFUSED | RIGHT_OR_WARNED),
]


def _levels(data: TensorData) -> list[float]:
    """Mean pixel of each class, from 0 to 1."""
    x = data.batch(torch.arange(len(data)))[0]
    return [float(x[data.y == k].mean()) for k in range(data.n_classes)]


for _text, _make, _suffix, _expected in FILES:

    @registry.add("image_folder", "reader", _text, _expected)
    def read(
        watch: Watch, make: Callable[[float], Any] = _make, suffix: str = _suffix, text: str = _text
    ) -> str | None:
        with tempfile.TemporaryDirectory() as folder:
            _folder(Path(folder), make, suffix)
            train = bpfree.data.load("image_folder", path=folder, standardize=False).train
        low, high = _levels(train)
        top = 16 if text.startswith("12 bits") else 1
        if not high - low > 0.3 / top:
            return f"the classes' mean pixels are {low:.3f} and {high:.3f}: they cannot be distinguished"
        far = max(abs(a - b - 0.01) for a, b in zip((low, high), BRIGHTNESS, strict=True))
        return None if far < 0.05 or top > 1 else f"mean pixels {low:.3f} and {high:.3f} of {BRIGHTNESS}"


def _spoilt(spoil: Callable[[Path], Any], **options: Any) -> str | None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _folder(folder, _grey(np.uint8, 255), ".png")
        spoil(folder)
        bpfree.data.load("image_folder", path=folder, **options)
    return "accepted"


@registry.add("image_folder", "reader", "one file cut short", REFUSED)
def cut_short(watch: Watch) -> str | None:
    def spoil(folder: Path) -> None:
        file = folder / "train" / "class0" / "3.png"
        file.write_bytes(file.read_bytes()[:40])

    return _spoilt(spoil)


@registry.add("image_folder", "reader", "one image of another size", REFUSED)
def another_size(watch: Watch) -> str | None:
    from PIL import Image

    return _spoilt(lambda f: Image.new("L", (9, 9)).save(f / "train" / "class0" / "3.png"))


@registry.add("image_folder", "reader", "a class that only test has", REFUSED)
def another_class(watch: Watch) -> str | None:
    def spoil(folder: Path) -> None:
        (folder / "test" / "class0").rename(folder / "test" / "classx")

    return _spoilt(spoil)


@registry.add("image_folder", "reader", "no folder", ANY)
def no_folder(watch: Watch) -> str | None:
    try:
        bpfree.data.load("image_folder", path="/no/such/folder")
    except bpfree.DataNotFound:
        return None
    return "accepted"


@registry.add("image_folder", "reader", "grey and 16-bit files among one another", RIGHT_OR_REFUSED)
def mixed_depths(watch: Watch) -> str | None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _folder(folder, _grey(np.uint8, 255), ".png")
        _grey(np.uint16, 65535)(BRIGHTNESS[0]).save(folder / "train" / "class0" / "3.png")
        train = bpfree.data.load("image_folder", path=folder, standardize=False).train
    low = _levels(train)[0]
    return None if abs(low - BRIGHTNESS[0]) < 0.05 else f"mean pixel of a class {low:.3f} of {BRIGHTNESS[0]}"


# ---- pairs of nodes --------------------------------------------------------------------------------------


@registry.add("load_graph", "digits_graph", "pairs are in no order")
def shuffled(watch: Watch) -> str | None:
    for part in bpfree.data.load_graph("digits_graph", split="links"):
        first = part.y[: len(part) // 2].float().mean().item()
        if abs(first - part.y.float().mean().item()) > 0.1:
            return f"{first:.2f} of the first half are edges, {part.y.float().mean():.2f} of all"
        right = ((part.ids[:, 0] < part.ids[:, 1]).long() == part.y).float().mean().item()
        if abs(right - 0.5) > 0.1:
            return f"the order inside a pair tells an edge for {right:.2f} of the pairs"
    return None


@registry.add("load_graph", "digits_graph", "pairs are the same each time")
def seeded(watch: Watch) -> str | None:
    import random

    loaded = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        loaded.append(bpfree.data.load_graph("digits_graph", split="links").train)
    a, b = loaded
    same = torch.equal(a.ids, b.ids) and torch.equal(a.y, b.y)
    return None if same else "other pairs, under other states of the global generators"


def cases() -> list[Case]:
    """All cases."""
    return registry.all
