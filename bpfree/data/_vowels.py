"""Vowels of many speakers: the recordings of Hillenbrand et al. (1995), and a table of formants."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bpfree._errors import BadValue, DataNotFound
from bpfree._seeds import generator
from bpfree.data._fetch import fetch
from bpfree.data._speech import Signal, formant_features, mel_features

VOWELS = ("ae", "ah", "aw", "eh", "ei", "er", "ih", "iy", "oa", "oo", "uh", "uw")
SEVEN = ("ae", "ah", "aw", "er", "ih", "iy", "uw")

_RECORDINGS = 1116
_CONTENT = "a6ca48dd9a605366b9d4c259045508fd67b41d53461343dba08cf1a7dec0a955"
_ARCHIVE = "https://github.com/fancompute/wavetorch/archive/1f95e027999407d65bc36e74bf842010faf2d641.tar.gz"
_TABLE = (
    "https://raw.githubusercontent.com/MomeniAli/PhyLL/0fbc1ad752a85d4970266dfcae38322d2ae71973/"
    "Vowel%20datasets/Vowel_dataset.xlsx"
)
_TABLE_SHA256 = "d492d33fcb2444daea663e7c4909dbcd2ad51fd479c97117a2c1f01790b70768"
_NAME = re.compile(r"([mw]\d\d)([a-z]{2})")
#: Version of the feature code, in the name of the cache file, so that features of older code are not used.
_VERSION = 1


class VowelSamples(NamedTuple):
    """Spoken vowels: float32 features `[N, D]`, int64 labels `[N]`, and speakers such as "w01"."""

    x: Tensor
    y: Tensor
    speakers: list[str]


def read_recordings(
    root: Path, features: str, vowels: tuple[str, ...], sexes: str, download: bool
) -> VowelSamples:
    """Compute the features of the recordings below `root`, or read them from the cache.

    Args:
        root: Folder that contains `Vowels/*.wav`, or `Vowels/raw/*.tar.gz`.
        features: "mel" (60 log energies) or "formants" (12, in Hz).
        vowels: Vowels to read, in the order of their labels.
        sexes: Sexes of the speakers to read: "m", "w" or "mw".
        download: Whether to download missing recordings.

    Raises:
        DataNotFound: If the recordings are missing or damaged.
    """
    recordings = _open(root, download)
    digest = _digest(recordings)
    if len(recordings) != _RECORDINGS or digest != _CONTENT:
        raise DataNotFound(
            f"the {len(recordings)} recordings in {root / 'Vowels'} are not the {_RECORDINGS} published "
            "recordings; replace the folder"
        )
    table = _cached(f"vowels-{features}-{_VERSION}-{digest}", lambda: _measure(recordings, features))
    names = [name for name in sorted(recordings) if name[0] in sexes and name[3:] in vowels]
    index = {name: i for i, name in enumerate(sorted(recordings))}
    x = torch.from_numpy(table[[index[name] for name in names]]).float()
    return VowelSamples(
        x, torch.tensor([vowels.index(name[3:]) for name in names]), [name[:3] for name in names]
    )


def read_table(root: Path, download: bool) -> VowelSamples:
    """Read formants of 258 vowels of 48 women, measured by hand, `[258, 12]` in Hz.

    Args:
        root: Folder that contains `PhyLL/vowel_dataset.xlsx`.
        download: Whether to download the file if it is missing.

    Raises:
        DataNotFound: If the file is missing and cannot be downloaded, or is not a spreadsheet.
        BadValue: If openpyxl is not installed, or the file has other contents.
    """
    file = root / "PhyLL" / "vowel_dataset.xlsx"
    if not file.exists():
        if not download:
            raise DataNotFound(
                f"vowel_formants: {file} is missing; set download=True to download it from {_TABLE}"
            )
        fetch(_TABLE, file, _TABLE_SHA256)
    try:
        from openpyxl import load_workbook
    except ImportError:
        raise BadValue(
            "vowel_formants is a spreadsheet and needs openpyxl: pip install 'bpfree[vowels]'"
        ) from None
    try:
        rows = list(load_workbook(file).worksheets[0].iter_rows(min_row=2, values_only=True))
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataNotFound(f"{file} is not a spreadsheet ({error}); remove it and try again") from error
    matches = [_NAME.fullmatch(str(row[0])) for row in rows]
    names = [(match[1], match[2]) for match in matches if match and match[2] in SEVEN]
    if len(names) != len(rows) or any(len(row) != 13 or None in row for row in rows):
        raise BadValue(f"{file}: expected rows of a name such as w01ae and 12 formants in Hz")
    try:
        x = torch.tensor([[float(str(value)) for value in row[1:]] for row in rows])
    except ValueError as error:
        raise BadValue(f"{file}: expected formants in Hz ({error})") from None
    if not torch.isfinite(x).all():
        raise BadValue(f"{file}: {int((~torch.isfinite(x)).sum())} formants are NaN or infinite")
    return VowelSamples(
        x, torch.tensor([SEVEN.index(vowel) for _, vowel in names]), [speaker for speaker, _ in names]
    )


def split_speakers(speakers: list[str], seed: int, validation: int | None, train: int | None) -> list[Tensor]:
    """Split vowels by speaker: int64 indices of the training, validation and test sets.

    A fifth of the men and a fifth of the women are test speakers. They depend on `seed`, because there are
    too few speakers for one test set to represent all of them.

    Args:
        speakers: Speaker of each vowel, such as "w01".
        seed: Seed of the split.
        validation: Number of speakers for validation; None: a tenth of all, at least one.
        train: Number of speakers for training; None: all others.

    Raises:
        BadValue: If there are fewer speakers.
    """
    test: list[str] = []
    others: list[str] = []
    # "talkers" and "rest" are names of random streams: other names would change the published splits.
    for sex in sorted({speaker[0] for speaker in speakers}):
        candidates = sorted({speaker for speaker in speakers if speaker[0] == sex})
        order = torch.randperm(
            len(candidates), generator=generator(torch.device("cpu"), seed, "talkers", sex)
        )
        shuffled = [candidates[i] for i in order.tolist()]
        held_out = max(1, round(len(candidates) / 5))
        test += shuffled[:held_out]
        others += shuffled[held_out:]
    order = torch.randperm(len(others), generator=generator(torch.device("cpu"), seed, "talkers", "rest"))
    others = [others[i] for i in order.tolist()]
    n = validation if validation is not None else max(1, round((len(test) + len(others)) / 10))
    left = len(others) - n
    if n < 1 or left < 1 or (train is not None and not 1 <= train <= left):
        raise BadValue(
            f"validation_size is {n} and train_size is {train}; both are numbers of speakers here, and "
            f"{len(others)} speakers are outside the test set; reduce train_size or validation_size"
        )
    parts = (others[: train or left], others[left:], test)
    return [torch.tensor([i for i, who in enumerate(speakers) if who in set(part)]) for part in parts]


def _open(root: Path, download: bool) -> dict[str, bytes]:
    """Contents of the recordings by name, such as "w01ae"."""
    folder = root / "Vowels"
    files = sorted(folder.glob("*.wav"))
    if files:
        return {file.stem: file.read_bytes() for file in files if _NAME.fullmatch(file.stem)}
    archives = sorted((folder / "raw").glob("*.tar.gz"))
    if not archives:
        if not download:
            raise DataNotFound(
                f"vowels: expected {folder}/*.wav, such as w01ae.wav, or a .tar.gz of them in "
                f"{folder / 'raw'}; to download them set download=True, or unset BPFREE_DATA and leave root "
                "out"
            )
        archives = [fetch(_ARCHIVE, folder / "raw" / "vowels.tar.gz", None)]
    recordings = {}
    try:
        with tarfile.open(archives[0]) as archive:
            for member in archive:
                path = Path(member.name)
                if path.suffix == ".wav" and _NAME.fullmatch(path.stem) and member.isfile():
                    content = archive.extractfile(member)
                    assert content is not None
                    recordings[path.stem] = content.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataNotFound(f"{archives[0]} cannot be read ({error}); remove it and try again") from error
    return recordings


def _digest(recordings: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name in sorted(recordings):
        digest.update(name.encode() + hashlib.sha256(recordings[name]).digest())
    return digest.hexdigest()


def _measure(recordings: Mapping[str, bytes], features: str) -> Signal:
    """Compute the features of all recordings, sorted by name: `[N, D]`."""
    from scipy.io import wavfile

    rows = []
    for name in sorted(recordings):
        rate, samples = wavfile.read(io.BytesIO(recordings[name]))
        signal = samples.astype(np.float64) / 32768
        if features == "mel":
            rows.append(mel_features(signal, rate))
        else:
            rows.append(formant_features(signal, rate, 5000.0 if name[0] == "w" else 4000.0))
    return np.stack(rows)


def _cached(name: str, make: Callable[[], Signal]) -> Signal:
    """Result of `make`, cached in a file that is written atomically to the user's cache folder."""
    from filelock import FileLock
    from platformdirs import user_cache_path

    file = user_cache_path("bpfree") / "features" / f"{name}.npy"
    file.parent.mkdir(parents=True, exist_ok=True)
    # One of several processes computes the features, and the others wait.
    with FileLock(file.with_name(file.name + ".lock")):
        if not file.exists():
            partial = file.with_name(file.name + ".partial")
            with open(partial, "wb") as out:
                np.save(out, make())
                out.flush()
                os.fsync(out.fileno())
            os.replace(partial, file)
        return np.asarray(np.load(file))
