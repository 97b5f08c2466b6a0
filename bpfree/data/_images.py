"""The named data sets: read, split and standardised by one call."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bpfree._errors import BadValue
from bpfree.data._augment import check_names
from bpfree.data._folder import read_folder
from bpfree.data._sources import Raw, data_root, may_download, read_digits, read_downloaded
from bpfree.data._tensors import TensorData
from bpfree.data._vowels import SEVEN, VOWELS, Tokens, read_recordings, read_table, split_talkers

_DESCRIPTIONS = {
    "digits": "8x8 grey handwritten digits, 10 classes, 1797 images; part of scikit-learn, no download",
    "mnist": "28x28 grey handwritten digits, 10 classes, 60000 + 10000 images",
    "fashion_mnist": "28x28 grey pictures of clothes, 10 classes, 60000 + 10000 images",
    "cifar10": "32x32 colour photographs, 10 classes, 50000 + 10000 images",
    "cifar100": "32x32 colour photographs, 100 classes, 50000 + 10000 images",
    "image_folder": "your own image files, in train/<class>/ and test/<class>/ below path",
    "vowels_7": "60 log-mel energies of 336 recordings: 7 vowels, 48 women; no talker is in two parts",
    "vowels_7_formants": "12 formants, measured by machine, of the same recordings",
    "vowels_12": "60 log-mel energies of 1116 recordings: 12 vowels, 45 men and 48 women; split by talker",
    "vowels_12_formants": "12 formants, measured by machine, of the same recordings",
    "vowel_formants": "12 formants, measured by hand, of 258 recordings: 7 vowels, 48 women; split by talker",
}

NAMES = tuple(_DESCRIPTIONS)
"""The data sets that `load` knows."""

_VOWELS = tuple(name for name in NAMES if name.startswith("vowel"))

# digits has no published test part. This one is the same whatever split_seed is, as a published one would be.
_DIGITS_TEST_SEED = 0


class Splits(NamedTuple):
    """The three parts of a data set; no sample is in two of them."""

    train: TensorData
    validation: TensorData
    test: TensorData


def describe() -> list[tuple[str, str]]:
    """(name, description in one line) of each data set that `load` knows."""
    return list(_DESCRIPTIONS.items())


def load(
    name: str,
    *,
    root: str | Path | None = None,
    download: bool | None = None,
    standardize: bool = False,
    augment: Sequence[str] = (),
    train_size: int | None = None,
    validation_size: int | None = None,
    split_seed: int = 0,
    path: str | Path | None = None,
    image_size: int | tuple[int, int] | None = None,
    device: str | torch.device = "cpu",
) -> Splits:
    """Load a data set, split into train, validation and test.

    Images are uint8 `[N, C, H, W]`; those of image_folder are floats in [0, 1] where a file has more than 8
    bits. Vowels are float features `[N, D]`, split by talker: the sizes count
    talkers, and the test part follows split_seed too.

    Args:
        name: one of `NAMES`.
        root: the folder of the data sets; by default $BPFREE_DATA, else the user's cache folder.
        download: whether missing data may be downloaded; by default only into the user's cache folder.
        standardize: give batches zero mean and unit variance per channel, or per feature, as measured on the
            train part.
        augment: names of augmentations ("flip", "crop", "shift") for the train part.
        train_size: keep this many training samples; by default all that validation leaves.
        validation_size: samples set apart from the published training set; by default 10000 of mnist, a
            quarter of digits (so that it splits 60/20/20), a tenth of the other images, and a tenth of all
            talkers.
        split_seed: fixes which samples are for validation, and which are kept for training.
        path: image_folder only: its folder, absolute or relative to root.
        image_size: image_folder only: (height, width) in pixels, or one number for both, to resize to.
        device: where the tensors are to live.

    Raises DataNotFound where data are missing and cannot be downloaded; BadValue for an unknown name or
    augmentation, an impossible size, or an option that this data set does not have.
    """
    augment = check_names(augment)
    _check_options(name, path, image_size)
    folder = data_root(root)
    if name in _VOWELS:
        tokens = _vowels(name, folder, may_download(root, download))
        parts = split_talkers(tokens.talkers, split_seed, validation_size, train_size)
        return _split_tokens(name, tokens, parts, standardize, augment, device)
    if name == "digits":
        raw = _digits()
    elif name == "image_folder":
        train, test, n_classes = read_folder(folder / Path(path or "").expanduser(), image_size)
        raw = Raw(*train, *test, n_classes)
    else:
        raw = read_downloaded(name, folder, may_download(root, download))

    order = _permutation(raw.y, split_seed, stratified=name == "digits")
    n_train, n_rest = _sizes(name, len(raw.y), train_size, validation_size)
    # Validation comes from the end, so that its size does not change which samples a given train_size keeps.
    kept, held_out = order[:n_train], order[n_rest:]
    train_data = TensorData(raw.x[kept], raw.y[kept], raw.n_classes, name=name)
    if standardize:
        mean, std = _channel_statistics(train_data.x)
        train_data = replace(train_data, mean=mean, std=std)
    return Splits(
        replace(train_data, augment=augment).to(device),
        replace(train_data, x=raw.x[held_out], y=raw.y[held_out]).to(device),
        replace(train_data, x=raw.test_x, y=raw.test_y).to(device),
    )


def _vowels(name: str, folder: Path, download: bool) -> Tokens:
    if name == "vowel_formants":
        return read_table(folder, download)
    vowels, sexes = (SEVEN, "w") if name.startswith("vowels_7") else (VOWELS, "mw")
    features = "formants" if name.endswith("_formants") else "mel"
    return read_recordings(folder, features, vowels, sexes, download)


def _split_tokens(
    name: str,
    tokens: Tokens,
    parts: list[Tensor],
    standardize: bool,
    augment: tuple[str, ...],
    device: str | torch.device,
) -> Splits:
    n_classes = int(tokens.y.max()) + 1
    train, validation, test = (TensorData(tokens.x[i], tokens.y[i], n_classes, name=name) for i in parts)
    statistics: dict[str, Any] = {}
    if standardize:
        deviation, mean = torch.std_mean(train.x.double(), dim=0, correction=0)
        statistics = {"mean": tuple(mean.tolist()), "std": tuple(deviation.tolist())}
    return Splits(
        replace(train, augment=augment, **statistics).to(device),
        replace(validation, **statistics).to(device),
        replace(test, **statistics).to(device),
    )


def _check_options(name: str, path: str | Path | None, image_size: int | tuple[int, int] | None) -> None:
    if name not in NAMES:
        raise BadValue(f"data set {name!r} is not known; expected one of {', '.join(NAMES)}")
    if name == "image_folder":
        if path is None:
            raise BadValue(
                "path is None; image_folder needs the folder that holds train/ and test/: give path="
            )
    elif path is not None or image_size is not None:
        raise BadValue(
            f"path is {path!r} and image_size {image_size!r}, which only image_folder has; "
            f"leave them out for {name}"
        )


def _digits() -> Raw:
    x, y = read_digits()
    order = _permutation(y, _DIGITS_TEST_SEED, stratified=True)
    n_test = round(len(y) / 5)
    test, rest = order[:n_test], order[n_test:]
    return Raw(x[rest], y[rest], x[test], y[test], 10)


def _sizes(name: str, n: int, train_size: int | None, validation_size: int | None) -> tuple[int, int]:
    """How many of `n` samples to train on, and how many validation leaves for that.

    Raises BadValue where there are not that many.
    """
    if validation_size is None:
        validation_size = 10_000 if name == "mnist" else max(1, round(n / (4 if name == "digits" else 10)))
    if not 0 < validation_size < n:
        raise BadValue(
            f"validation_size is {validation_size}; expected 1..{n - 1}, for {name} has {n} samples outside "
            "its test part; set validation_size"
        )
    left = n - validation_size
    if train_size is None:
        train_size = left
    if not 0 < train_size <= left:
        raise BadValue(
            f"train_size is {train_size}; expected 1..{left}, for {name} has {n} samples outside its test "
            f"part and {validation_size} are for validation; lower one of the two"
        )
    return train_size, left


def _permutation(y: Tensor, seed: int, *, stratified: bool) -> Tensor:
    """A random order of the samples with labels `y` `[N]`, by a generator of its own: int64 `[N]`.

    Stratified, each stretch of it holds the classes in nearly the proportions they have in `y`.
    """
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    if not stratified:
        return order
    # Spread each class evenly over [0, 1), then read all classes from left to right.
    place = torch.empty(len(y), dtype=torch.float64)
    for label in set(y.tolist()):
        members = y[order] == label
        n = int(members.sum())
        place[members] = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return order[place.argsort(stable=True)]


def _channel_statistics(x: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation per channel of images `[N, C, H, W]`, uint8 or floats in [0, 1].

    Both in units of a [0, 1] pixel. Of uint8 it counts the 256 grey levels instead of summing pixels: exact,
    and without a float copy of the images.
    """
    level = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in x.unbind(1):
        if x.is_floating_point():
            deviation, average = torch.std_mean(channel.double(), correction=0)
            means.append(average.item())
            stds.append(deviation.item())
            continue
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean = (share * level).sum()
        means.append(mean.item())
        stds.append((share * (level - mean) ** 2).sum().sqrt().item())
    return tuple(means), tuple(stds)
