"""`load`: read, split and standardize a data set by name."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bpfree._errors import BadValue
from bpfree.data._augment import check_names
from bpfree.data._folder import read_folder
from bpfree.data._sources import Raw, data_root, may_download, read_digits, read_downloaded
from bpfree.data._tensors import TensorData
from bpfree.data._vowels import SEVEN, VOWELS, VowelSamples, read_recordings, read_table, split_speakers

_DESCRIPTIONS = {
    "digits": "8x8 gray handwritten digits, 10 classes, 1797 images; part of scikit-learn, no download",
    "mnist": "28x28 gray handwritten digits, 10 classes, 60000 + 10000 images",
    "fashion_mnist": "28x28 gray images of clothes, 10 classes, 60000 + 10000 images",
    "cifar10": "32x32 color photographs, 10 classes, 50000 + 10000 images",
    "cifar100": "32x32 color photographs, 100 classes, 50000 + 10000 images",
    "image_folder": "your own image files in path/train/<class>/ and path/test/<class>/",
    "vowels_7": "60 log-mel energies of 336 recordings: 7 vowels, 48 women; split by speaker",
    "vowels_7_formants": "12 formants of the same recordings, computed",
    "vowels_12": "60 log-mel energies of 1116 recordings: 12 vowels, 45 men and 48 women; split by speaker",
    "vowels_12_formants": "12 formants of the same recordings, computed",
    "vowel_formants": "12 formants of 258 recordings, measured by hand: 7 vowels, 48 women; split by speaker",
}

NAMES = tuple(_DESCRIPTIONS)
"""Names of the data sets for `load`."""

_VOWELS = tuple(name for name in NAMES if name.startswith("vowel"))

# digits has no published test set. This seed fixes one that does not depend on split_seed.
_DIGITS_TEST_SEED = 0


class Splits(NamedTuple):
    """Disjoint training, validation and test sets."""

    train: TensorData
    validation: TensorData
    test: TensorData


def describe() -> list[tuple[str, str]]:
    """Name and one-line description of each data set of `load`."""
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
    """Load a data set, split into training, validation and test sets.

    Images are uint8 `[N, C, H, W]`; images of image_folder are floats in [0, 1] if a file has more than 8
    bits per channel. Vowels are float features `[N, D]`, split by speaker: the sizes are numbers of speakers,
    and the test set also depends on `split_seed`.

    Args:
        name: One of `NAMES`.
        root: Folder of the data sets. Default: $BPFREE_DATA, or the user's cache folder if that is not set.
        download: Whether to download missing data. Default: only into the user's cache folder.
        standardize: Whether batches have zero mean and unit variance per channel (per feature for vowels),
            measured on the training set.
        augment: Names of the augmentations of the training set: "flip", "crop", "shift".
        train_size: Number of training samples. Default: all that are not used for validation.
        validation_size: Number of samples of the published training set that are used for validation.
            Default: 10000 for mnist, a quarter for digits (a split of 60/20/20), a tenth for other images,
                and
            a tenth of all speakers for vowels.
        split_seed: Seed of the choice of validation and training samples.
        path: Folder of image_folder, absolute or relative to `root`. Only for image_folder.
        image_size: Size to resize images to, (height, width) in pixels or one number for both. Only for
            image_folder.
        device: Device of the tensors.

    Raises:
        DataNotFound: If data are missing and cannot be downloaded.
        BadValue: If a name or an augmentation is unknown, a size is impossible, or the data set does not have
            an option.
    """
    augment = check_names(augment)
    _check_options(name, path, image_size)
    folder = data_root(root)
    if name in _VOWELS:
        samples = _vowels(name, folder, may_download(root, download))
        parts = split_speakers(samples.speakers, split_seed, validation_size, train_size)
        return _split_vowels(name, samples, parts, standardize, augment, device)
    if name == "digits":
        raw = _digits()
    elif name == "image_folder":
        train, test, n_classes = read_folder(folder / Path(path or "").expanduser(), image_size)
        raw = Raw(*train, *test, n_classes)
    else:
        raw = read_downloaded(name, folder, may_download(root, download))

    order = _permutation(raw.y, split_seed, stratified=name == "digits")
    n_train, n_left = _sizes(name, len(raw.y), train_size, validation_size)
    # Validation samples are taken from the end, so that their number does not change the training samples.
    training, held_out = order[:n_train], order[n_left:]
    train_data = TensorData(raw.x[training], raw.y[training], raw.n_classes, name=name)
    if standardize:
        mean, std = _channel_statistics(train_data.x)
        train_data = replace(train_data, mean=mean, std=std)
    return Splits(
        replace(train_data, augment=augment).to(device),
        replace(train_data, x=raw.x[held_out], y=raw.y[held_out]).to(device),
        replace(train_data, x=raw.test_x, y=raw.test_y).to(device),
    )


def _vowels(name: str, folder: Path, download: bool) -> VowelSamples:
    if name == "vowel_formants":
        return read_table(folder, download)
    vowels, sexes = (SEVEN, "w") if name.startswith("vowels_7") else (VOWELS, "mw")
    features = "formants" if name.endswith("_formants") else "mel"
    return read_recordings(folder, features, vowels, sexes, download)


def _split_vowels(
    name: str,
    samples: VowelSamples,
    parts: list[Tensor],
    standardize: bool,
    augment: tuple[str, ...],
    device: str | torch.device,
) -> Splits:
    n_classes = int(samples.y.max()) + 1
    train, validation, test = (TensorData(samples.x[i], samples.y[i], n_classes, name=name) for i in parts)
    mean = std = None
    if standardize:
        deviation, average = torch.std_mean(train.x.double(), dim=0, correction=0)
        mean, std = tuple(average.tolist()), tuple(deviation.tolist())
    return Splits(
        replace(train, augment=augment, mean=mean, std=std).to(device),
        replace(validation, mean=mean, std=std).to(device),
        replace(test, mean=mean, std=std).to(device),
    )


def _check_options(name: str, path: str | Path | None, image_size: int | tuple[int, int] | None) -> None:
    if name not in NAMES:
        raise BadValue(f"there is no data set {name!r}; expected one of {', '.join(NAMES)}")
    if name == "image_folder":
        if path is None:
            raise BadValue(
                "path is None; image_folder expects the folder that contains train/ and test/; set path"
            )
    elif path is not None or image_size is not None:
        raise BadValue(
            f"path is {path!r} and image_size is {image_size!r}, but {name} has neither option, only "
            "image_folder; leave them out"
        )


def _digits() -> Raw:
    x, y = read_digits()
    order = _permutation(y, _DIGITS_TEST_SEED, stratified=True)
    n_test = round(len(y) / 5)
    test, train = order[:n_test], order[n_test:]
    return Raw(x[train], y[train], x[test], y[test], 10)


def _sizes(name: str, n: int, train_size: int | None, validation_size: int | None) -> tuple[int, int]:
    """Number of training samples, and number of the `n` samples that are not used for validation.

    Raises:
        BadValue: If there are fewer samples.
    """
    if validation_size is None:
        validation_size = 10_000 if name == "mnist" else max(1, round(n / (4 if name == "digits" else 10)))
    if not 0 < validation_size < n:
        raise BadValue(
            f"validation_size is {validation_size}; expected 1..{n - 1}, because {name} has {n} samples "
            "outside its test set; change validation_size"
        )
    left = n - validation_size
    if train_size is None:
        train_size = left
    if not 0 < train_size <= left:
        raise BadValue(
            f"train_size is {train_size}; expected 1..{left}, because {name} has {n} samples outside its "
            f"test set, of which {validation_size} are for validation; reduce train_size or validation_size"
        )
    return train_size, left


def _permutation(y: Tensor, seed: int, *, stratified: bool) -> Tensor:
    """A random permutation of the samples with labels `y` `[N]`, from a new generator: int64 `[N]`.

    If it is stratified, each interval of it has the classes in nearly the same proportions as `y`.
    """
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    if not stratified:
        return order
    # Place the samples of each class evenly in [0, 1), then sort all samples by their place.
    place = torch.empty(len(y), dtype=torch.float64)
    for label in set(y.tolist()):
        members = y[order] == label
        n = int(members.sum())
        place[members] = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return order[place.argsort(stable=True)]


def _channel_statistics(x: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation per channel of images `[N, C, H, W]`, uint8 or floats in [0, 1].

    The unit is that of a pixel in [0, 1]. For uint8 they are computed from counts of the 256 values, which is
    exact and needs no float copy of the images.
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
