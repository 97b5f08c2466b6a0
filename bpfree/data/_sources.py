"""Locations of the image data sets, and readers that return uint8 tensors."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bpfree._errors import DataNotFound

ROOT_VARIABLE = "BPFREE_DATA"


class Raw(NamedTuple):
    """A data set with its published split: images `[N, C, H, W]` (uint8 or float) and int64 labels `[N]`."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    n_classes: int


class Download(NamedTuple):
    """A data set that torchvision reads and downloads."""

    class_name: str
    folder: str
    files: str
    n_classes: int


_IDX_FILES = "{train,t10k}-images-idx3-ubyte and {train,t10k}-labels-idx1-ubyte"

DOWNLOADS = {
    "mnist": Download("MNIST", "MNIST/raw", _IDX_FILES, 10),
    "fashion_mnist": Download("FashionMNIST", "FashionMNIST/raw", _IDX_FILES, 10),
    "cifar10": Download("CIFAR10", "cifar-10-batches-py", "data_batch_1..5, test_batch and batches.meta", 10),
    "cifar100": Download("CIFAR100", "cifar-100-python", "train, test and meta", 100),
}


def data_root(root: str | Path | None) -> Path:
    """Folder of the data sets: `root` if given, else $BPFREE_DATA if set, else the user's cache folder."""
    chosen = root or os.environ.get(ROOT_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("bpfree")


def may_download(root: str | Path | None, download: bool | None) -> bool:
    """`download` if it is not None; else True only if the data are stored in the user's cache folder."""
    if download is not None:
        return download
    return not (root or os.environ.get(ROOT_VARIABLE))


def read_digits() -> tuple[Tensor, Tensor]:
    """Digits of scikit-learn: images, uint8 `[1797, 1, 8, 8]` in 0..255; labels, int64 `[1797]`."""
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    # The original gray levels are 0..16.
    x = torch.from_numpy(values).mul(255 / 16).round().to(torch.uint8)
    return x.view(-1, 1, 8, 8), torch.from_numpy(labels).long()


def read_downloaded(name: str, root: Path, download: bool) -> Raw:
    """Read one of `DOWNLOADS` from `root`, in torchvision's layout.

    Args:
        name: Key of `DOWNLOADS`.
        root: Folder of the data sets.
        download: Whether to download the data set if it is missing.

    Raises:
        DataNotFound: If the data set is missing or damaged, and `download` is False or the download fails.
    """
    source = DOWNLOADS[name]
    try:
        train = _open(source, root, True, download)
        test = _open(source, root, False, download)
    except (RuntimeError, OSError) as error:  # a failed download raises URLError, a subclass of OSError
        reason = "the download failed" if download else "downloading is disabled"
        raise DataNotFound(
            f"{name} cannot be read from {root}, and {reason} ({error}): expected {root / source.folder}/ "
            f"with the files {source.files}. To download it set download=True, or unset {ROOT_VARIABLE} and "
            "leave root out; remove damaged files first"
        ) from error
    return Raw(*_tensors(train), *_tensors(test), source.n_classes)


class _Samples(Protocol):
    """What this module uses of a torchvision data set."""

    data: Tensor | NDArray[np.uint8]
    targets: Tensor | list[int]


def _open(source: Download, root: Path, train: bool, download: bool) -> _Samples:
    from torchvision import datasets

    cls: Callable[..., _Samples] = getattr(datasets, source.class_name)
    try:
        return cls(root, train=train)
    except RuntimeError:
        if not download:
            raise
    from filelock import FileLock

    root.mkdir(parents=True, exist_ok=True)
    # Two processes that download at the same time would overwrite each other's files.
    with FileLock(root / f"{source.class_name}.lock"):
        return cls(root, train=train, download=True)


def _tensors(dataset: _Samples) -> tuple[Tensor, Tensor]:
    """Images `[N, C, H, W]` and labels `[N]` of a torchvision data set.

    torchvision stores images as `[N, H, W]` (MNIST) or `[N, H, W, 3]` (CIFAR).
    """
    x = torch.as_tensor(dataset.data)
    x = x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2).contiguous()
    return x, torch.as_tensor(dataset.targets)
