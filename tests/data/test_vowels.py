"""Vowels: read from a folder or an archive, split by speaker, cached by content."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from bpfree._errors import BadValue, DataNotFound
from bpfree.data import _vowels, acoustic_cavity, load
from bpfree.data._vowels import SEVEN, VOWELS, split_speakers
from tests.data.test_speech import RATE, vowel

SPEAKERS = [f"{sex}{number:02d}" for sex in "mw" for number in (1, 2, 3, 5, 8, 9)]


@pytest.fixture(scope="module")
def recordings() -> dict[str, bytes]:
    """One recording of each vowel by each speaker; F1 depends on the vowel, the pitch on the speaker."""
    files = {}
    for t, speaker in enumerate(SPEAKERS):
        for v, name in enumerate(VOWELS):
            sound = vowel((300 + 40 * v, 1500 + 60 * v, 2800, 3600, 4500), 0.15, 120 + 12 * t, silence=0.03)
            file = io.BytesIO()
            wavfile.write(file, RATE, (32767 * sound).astype(np.int16))
            files[speaker + name] = file.getvalue()
    return files


@pytest.fixture(autouse=True)
def published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recordings: dict[str, bytes]) -> None:
    monkeypatch.setattr(_vowels, "_RECORDINGS", len(recordings))
    monkeypatch.setattr(_vowels, "_CONTENT", _vowels._digest(recordings))
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / "cache" / name)
    monkeypatch.delenv("BPFREE_DATA", raising=False)


def write_folder(root: Path, recordings: dict[str, bytes]) -> None:
    (root / "Vowels").mkdir(parents=True)
    for name, content in recordings.items():
        (root / "Vowels" / f"{name}.wav").write_bytes(content)


def write_archive(file: Path, recordings: dict[str, bytes]) -> None:
    file.parent.mkdir(parents=True)
    with tarfile.open(file, "w:gz") as archive:
        for name, content in {**recordings, "readme": b"no recording"}.items():
            member = tarfile.TarInfo(f"vowels/{name[-1]}/{name}.wav")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def test_a_folder_and_an_archive_give_the_same_data(tmp_path: Path, recordings: dict[str, bytes]) -> None:
    write_folder(tmp_path / "a", recordings)
    write_archive(tmp_path / "b" / "Vowels" / "raw" / "vowels.tar.gz", recordings)
    for a, b in zip(
        load("vowels_12", root=tmp_path / "a"), load("vowels_12", root=tmp_path / "b"), strict=True
    ):
        assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y)


def test_labels_match_features(tmp_path: Path, recordings: dict[str, bytes]) -> None:
    write_folder(tmp_path, recordings)
    for part in load("vowels_12_formants", root=tmp_path):
        assert part.sample_shape == (12,) and part.n_classes == 12
        np.testing.assert_allclose(part.x[:, 0], 300 + 40 * part.y, rtol=0.15)
    seven = load("vowels_7_formants", root=tmp_path)
    assert seven.train.n_classes == 7
    f1 = [300 + 40 * VOWELS.index(name) for name in SEVEN]
    for part in seven:
        np.testing.assert_allclose(part.x[:, 0], [f1[y] for y in part.y.tolist()], rtol=0.15)
    assert sum(map(len, seven)) == 6 * 7, "only women"


@pytest.mark.parametrize("seed", range(5))
def test_each_speaker_is_in_exactly_one_set(seed: int) -> None:
    speakers = [speaker for speaker in SPEAKERS for _ in VOWELS]
    parts = split_speakers(speakers, seed, None, None)
    who = [{speakers[i] for i in part.tolist()} for part in parts]
    assert not who[0] & who[1] and not who[0] & who[2] and not who[1] & who[2]
    assert set.union(*who) == set(SPEAKERS) and sum(map(len, parts)) == len(speakers)
    assert sorted(speaker[0] for speaker in who[2]) == ["m", "w"], "a fifth of each sex"
    assert [len(part) for part in split_speakers(speakers, seed, 3, 2)] == [2 * 12, 3 * 12, 2 * 12]


def test_test_speakers_depend_on_the_seed_and_sizes_are_checked() -> None:
    tests = [split_speakers(SPEAKERS, seed, None, None)[2].tolist() for seed in range(8)]
    assert (
        len({tuple(test) for test in tests}) > 2
        and tests[0] == split_speakers(SPEAKERS, 0, None, None)[2].tolist()
    )
    for validation, train in ((0, None), (10, None), (3, 8)):
        with pytest.raises(BadValue, match="speakers"):
            split_speakers(SPEAKERS, 0, validation, train)


def test_standardization_uses_only_training_speakers(tmp_path: Path, recordings: dict[str, bytes]) -> None:
    write_folder(tmp_path, recordings)
    train, _, test = load("vowels_12", root=tmp_path, standardize=True)
    x, _ = train.batch(torch.arange(len(train)))
    torch.testing.assert_close(x.mean(0), torch.zeros(60), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(60), atol=1e-3, rtol=0)
    assert test.mean == train.mean and test.std == train.std


def test_features_are_computed_once_for_the_same_recordings(
    tmp_path: Path, recordings: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path, recordings)
    first = load("vowels_7", root=tmp_path)

    def never(*args: object) -> None:
        raise AssertionError("the features should be read from the cache")

    with monkeypatch.context() as patch:
        patch.setattr(_vowels, "_measure", never)
        again = load("vowels_7", root=tmp_path)
        assert torch.equal(first.train.x, again.train.x)
        with pytest.raises(AssertionError, match="cache"):
            load("vowels_7_formants", root=tmp_path)
    names = sorted(file.name for file in (tmp_path / "cache" / "bpfree" / "features").iterdir())
    assert not [name for name in names if name.endswith(".partial") and "mel" in name]


def test_damaged_or_missing_recordings_raise_an_error(tmp_path: Path, recordings: dict[str, bytes]) -> None:
    with pytest.raises(DataNotFound, match="w01ae"):
        load("vowels_12", root=tmp_path)
    fewer = {name: content for name, content in recordings.items() if name != "m01ae"}
    write_folder(tmp_path / "fewer", fewer)
    write_folder(tmp_path / "other", {**recordings, "m01ae": recordings["m01ae"][:-2] + b"zz"})
    for root in ("fewer", "other"):
        with pytest.raises(DataNotFound, match="published"):
            load("vowels_12", root=tmp_path / root)
    archive = tmp_path / "cut" / "Vowels" / "raw" / "vowels.tar.gz"
    write_archive(archive, recordings)
    archive.write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(DataNotFound, match="remove it"):
        load("vowels_12", root=tmp_path / "cut")


def test_options_of_images_raise_an_error(tmp_path: Path, recordings: dict[str, bytes]) -> None:
    write_folder(tmp_path, recordings)
    with pytest.raises(BadValue, match="image_size"):
        load("vowels_12", root=tmp_path, image_size=8)
    with pytest.raises(BadValue, match="augment"):
        load("vowels_12", root=tmp_path, augment=["flip"])


def write_table(root: Path, rows: list[list[object]]) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in [["", *(f"F{i}" for i in range(12))], *rows]:
        book.active.append(row)
    (root / "PhyLL").mkdir(parents=True)
    book.save(root / "PhyLL" / "vowel_dataset.xlsx")


def test_the_table_of_formants_is_read_unchanged(tmp_path: Path) -> None:
    rows = [
        [f"w{t:02d}{name}", *range(100 * v, 100 * v + 12)]
        for t in range(1, 12)
        for v, name in enumerate(SEVEN)
    ]
    write_table(tmp_path, rows)
    parts = load("vowel_formants", root=tmp_path)
    assert sum(map(len, parts)) == 77 and parts.train.n_classes == 7
    for part in parts:
        assert torch.equal(part.x[:, 0], 100.0 * part.y)


def test_without_openpyxl_the_table_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "PhyLL").mkdir()
    (tmp_path / "PhyLL" / "vowel_dataset.xlsx").write_bytes(b"PK")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(BadValue, match=r"needs openpyxl: pip install 'bpfree\[vowels\]'"):
        load("vowel_formants", root=tmp_path)


def test_an_invalid_table_raises_an_error(tmp_path: Path) -> None:
    write_table(tmp_path / "a", [["w01ae", *range(11)]])
    write_table(tmp_path / "b", [["w01zz", *range(12)]])
    for root, value in (("c", "not measured"), ("d", "nan")):
        write_table(tmp_path / root, [["w01ae", value, *range(11)]])
        with pytest.raises(BadValue, match="formants"):
            load("vowel_formants", root=tmp_path / root)
    for root in ("a", "b"):
        with pytest.raises(BadValue, match="w01ae"):
            load("vowel_formants", root=tmp_path / root)
    with pytest.raises(DataNotFound, match=r"vowel_dataset\.xlsx"):
        load("vowel_formants", root=tmp_path)
    (tmp_path / "PhyLL").mkdir()
    (tmp_path / "PhyLL" / "vowel_dataset.xlsx").write_text("<html>404</html>")
    with pytest.raises(DataNotFound, match="remove it"):
        load("vowel_formants", root=tmp_path)


def test_the_placeholder_row_of_the_measured_cavity_is_skipped(tmp_path: Path) -> None:
    folder = tmp_path / "PhyLL"
    folder.mkdir()
    values = np.random.default_rng(0).random((2, 5, 20)).round(5)
    values[:, 0] = 0
    for name, part in zip(("acoustic_x.csv", "acoustic_y.csv"), values, strict=True):
        np.savetxt(folder / name, part, delimiter=",", fmt="%.5f")
    u, y = acoustic_cavity(tmp_path)
    np.testing.assert_array_equal(u, values[0, 1:])
    np.testing.assert_array_equal(y, values[1, 1:])
    (folder / "acoustic_y.csv").write_text("<html>404</html>\n<html>404</html>\n")
    with pytest.raises(DataNotFound, match="cannot be read"):
        acoustic_cavity(tmp_path)
    for wrong, why in (
        (values[1, :, :19], r"\[4, 20\] and the outputs \[4, 19\]"),
        (values[1, :4], r"outputs \[3, 20\]"),
    ):
        np.savetxt(folder / "acoustic_y.csv", wrong, delimiter=",")
        with pytest.raises(DataNotFound, match=why):
            acoustic_cavity(tmp_path)
    values[1, 3, 7] = np.inf
    np.savetxt(folder / "acoustic_y.csv", values[1], delimiter=",")
    with pytest.raises(DataNotFound, match="NaN or infinite"):
        acoustic_cavity(tmp_path)
    with pytest.raises(DataNotFound, match=r"acoustic_x\.csv"):
        acoustic_cavity(tmp_path / "none")
