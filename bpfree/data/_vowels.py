"""Vowels that many talkers said: the recordings of Hillenbrand et al. (1995), and a table of formants."""

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
#: Changes with the code that makes features, so that a cache of an older one is not read.
_VERSION = 1


class Tokens(NamedTuple):
    """Spoken vowels: float32 features `[N, D]`, int64 labels `[N]`, and who spoke, such as "w01"."""

    x: Tensor
    y: Tensor
    talkers: list[str]


def read_recordings(root: Path, features: str, vowels: tuple[str, ...], sexes: str, download: bool) -> Tokens:
    """Features of the recordings below `root`, cached by the recordings' content.

    Args:
        root: Holds `Vowels/*.wav`, or `Vowels/raw/*.tar.gz`.
        features: "mel", 60 numbers, or "formants", 12 in Hz.
        vowels: Which vowels, in the order of their labels.
        sexes: Any of "m" and "w".
        download: Whether to download what is missing.

    Raises DataNotFound where the recordings are missing or damaged.
    """
    recordings = _open(root, download)
    digest = _digest(recordings)
    if len(recordings) != _RECORDINGS or digest != _CONTENT:
        raise DataNotFound(
            f"the {len(recordings)} recordings in {root / 'Vowels'} are not the {_RECORDINGS} that were "
            "published; replace the folder"
        )
    table = _cached(f"vowels-{features}-{_VERSION}-{digest}", lambda: _measure(recordings, features))
    names = [name for name in sorted(recordings) if name[0] in sexes and name[3:] in vowels]
    index = {name: i for i, name in enumerate(sorted(recordings))}
    x = torch.from_numpy(table[[index[name] for name in names]]).float()
    return Tokens(x, torch.tensor([vowels.index(name[3:]) for name in names]), [name[:3] for name in names])


def read_table(root: Path, download: bool) -> Tokens:
    """The hand-measured formants of 258 vowels of 48 women, `[258, 12]` in Hz: `PhyLL/vowel_dataset.xlsx`.

    Raises DataNotFound where the file is missing and cannot be downloaded, BadValue where openpyxl is missing
    or the file is another one.
    """
    file = root / "PhyLL" / "vowel_dataset.xlsx"
    if not file.exists():
        if not download:
            raise DataNotFound(
                f"vowel_formants: expected {file}; set download=True to fetch it from {_TABLE}"
            )
        fetch(_TABLE, file, _TABLE_SHA256)
    try:
        from openpyxl import load_workbook
    except ImportError:
        raise BadValue("vowel_formants is a spreadsheet; install openpyxl, as with bpfree[vowels]") from None
    try:
        rows = list(load_workbook(file).worksheets[0].iter_rows(min_row=2, values_only=True))
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataNotFound(f"{file} is no spreadsheet ({error}); remove it and try again") from error
    found = [_NAME.fullmatch(str(row[0])) for row in rows]
    names = [(match[1], match[2]) for match in found if match and match[2] in SEVEN]
    if len(names) != len(rows) or any(len(row) != 13 or None in row for row in rows):
        raise BadValue(f"{file}: expected rows of a name such as w01ae and 12 formants in Hz")
    try:
        x = torch.tensor([[float(str(value)) for value in row[1:]] for row in rows])
    except ValueError as error:
        raise BadValue(f"{file}: expected formants in Hz ({error})") from None
    if not torch.isfinite(x).all():
        raise BadValue(f"{file}: {int((~torch.isfinite(x)).sum())} formants are NaN or infinite")
    return Tokens(
        x, torch.tensor([SEVEN.index(vowel) for _, vowel in names]), [talker for talker, _ in names]
    )


def split_talkers(talkers: list[str], seed: int, validation: int | None, train: int | None) -> list[Tensor]:
    """Which tokens are for training, validation and test: int64 indices; no talker is in two of the parts.

    A fifth of the men and a fifth of the women are for the test, so it changes with `seed`: there are too few
    talkers for one test part to stand for all of them.

    Args:
        talkers: Who spoke each token, such as "w01".
        seed: Which talkers go where.
        validation: Number of talkers for validation; None: a tenth of all, at least one.
        train: Number of talkers to train on; None: all others.

    Raises BadValue where there are not that many talkers.
    """
    test: list[str] = []
    rest: list[str] = []
    for sex in sorted({talker[0] for talker in talkers}):
        people = sorted({talker for talker in talkers if talker[0] == sex})
        order = torch.randperm(len(people), generator=generator(torch.device("cpu"), seed, "talkers", sex))
        shuffled = [people[i] for i in order.tolist()]
        held_out = max(1, round(len(people) / 5))
        test += shuffled[:held_out]
        rest += shuffled[held_out:]
    order = torch.randperm(len(rest), generator=generator(torch.device("cpu"), seed, "talkers", "rest"))
    rest = [rest[i] for i in order.tolist()]
    n = validation if validation is not None else max(1, round((len(test) + len(rest)) / 10))
    left = len(rest) - n
    if n < 1 or left < 1 or (train is not None and not 1 <= train <= left):
        raise BadValue(
            f"validation_size is {n} and train_size {train}; both count talkers here, of whom {len(rest)} "
            "are outside the test part; lower one of the two"
        )
    parts = (rest[: train or left], rest[left:], test)
    return [torch.tensor([i for i, who in enumerate(talkers) if who in set(part)]) for part in parts]


def _open(root: Path, download: bool) -> dict[str, bytes]:
    """The recordings by their names, such as "w01ae"."""
    folder = root / "Vowels"
    files = sorted(folder.glob("*.wav"))
    if files:
        return {file.stem: file.read_bytes() for file in files if _NAME.fullmatch(file.stem)}
    archives = sorted((folder / "raw").glob("*.tar.gz"))
    if not archives:
        if not download:
            raise DataNotFound(
                f"vowels: expected {folder}/*.wav, such as w01ae.wav, or a .tar.gz of them in "
                f"{folder / 'raw'}; to download them set download=True, or unset BPFREE_DATA and give no root"
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
    """Features of all recordings in the order of their names, `[N, D]`."""
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
    """What `make` makes, kept in the user's cache folder; written at once, so no reader sees a part."""
    from filelock import FileLock
    from platformdirs import user_cache_path

    file = user_cache_path("bpfree") / "features" / f"{name}.npy"
    file.parent.mkdir(parents=True, exist_ok=True)
    # Of several processes one computes, and the others wait for it.
    with FileLock(file.with_name(file.name + ".lock")):
        if not file.exists():
            partial = file.with_name(file.name + ".partial")
            with open(partial, "wb") as out:
                np.save(out, make())
                out.flush()
                os.fsync(out.fileno())
            os.replace(partial, file)
        return np.asarray(np.load(file))
