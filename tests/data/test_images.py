import pickle
import socket
import struct
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision

from bpfree._errors import BadValue, DataNotFound
from bpfree.data import NAMES, describe, load
from bpfree.data._images import _permutation


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """Disable the network, and use temporary folders for all data."""

    def refuse(*args, **kwargs):
        raise AssertionError("the test opened a network connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.delenv("BPFREE_DATA", raising=False)
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / "cache" / name)


def write_mnist(root: Path, folder: str = "MNIST", n: int = 50, n_test: int = 20) -> dict[str, np.ndarray]:
    """Write random images in the idx format; the first pixel of training image i is i."""
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", n), ("t10k", n_test)):
        x = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        x[:, 0, 0] = np.arange(count)
        y = rng.integers(0, 10, count, dtype=np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 0x803, count, 28, 28) + x.tobytes()
        )
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + y.tobytes())
        arrays |= {f"{part}_x": x, f"{part}_y": y}
    return arrays


def write_cifar(root: Path, monkeypatch, cls: type, label_key: str) -> tuple[np.ndarray, list[int]]:
    """Write random batches in CIFAR's pickle format, ten images each; return the training set."""
    folder = root / cls.base_folder
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(cls, part, [[file, None] for file, _ in getattr(cls, part)])
    monkeypatch.setattr(cls, "meta", cls.meta | {"md5": None})
    (folder / cls.meta["filename"]).write_bytes(pickle.dumps({cls.meta["key"]: ["a", "b"]}))
    xs, ys = [], []
    for file, _ in cls.train_list + cls.test_list:
        x, y = rng.integers(0, 256, (10, 3072), dtype=np.uint8), rng.integers(0, 10, 10).tolist()
        (folder / file).write_bytes(pickle.dumps({"data": x, label_key: y}))
        xs.append(x)
        ys += y
    return np.concatenate(xs[:-1]), ys[:-10]


def ids(data):
    return data.x[:, 0, 0, 0].tolist()


def test_mnist_is_read_correctly(tmp_path):
    arrays = write_mnist(tmp_path)
    train, validation, test = load("mnist", root=tmp_path, validation_size=10)
    assert (len(train), len(validation), len(test)) == (40, 10, 20)
    for data in (train, validation):
        assert data.x.dtype == torch.uint8 and data.sample_shape == (1, 28, 28) and data.n_classes == 10
        np.testing.assert_array_equal(data.x[:, 0].numpy(), arrays["train_x"][ids(data)])
        np.testing.assert_array_equal(data.y.numpy(), arrays["train_y"][ids(data)])
    assert sorted(ids(train) + ids(validation)) == list(range(50))
    np.testing.assert_array_equal(test.x[:, 0].numpy(), arrays["t10k_x"])
    np.testing.assert_array_equal(test.y.numpy(), arrays["t10k_y"])


def test_fashion_mnist_uses_its_folder_and_a_tenth_for_validation(tmp_path):
    write_mnist(tmp_path, "FashionMNIST")
    train, validation, _ = load("fashion_mnist", root=tmp_path)
    assert (len(train), len(validation), train.name) == (45, 5, "fashion_mnist")


@pytest.mark.parametrize(
    ("name", "cls", "key", "n", "n_classes"),
    [
        ("cifar10", torchvision.datasets.CIFAR10, "labels", 50, 10),
        ("cifar100", torchvision.datasets.CIFAR100, "fine_labels", 10, 100),
    ],
)
def test_cifar_is_read_correctly(tmp_path, monkeypatch, name, cls, key, n, n_classes):
    x, y = write_cifar(tmp_path, monkeypatch, cls, key)
    train, validation, test = load(name, root=tmp_path)
    assert (len(train), len(validation), len(test)) == (n - n // 10, n // 10, 10)
    assert train.n_classes == n_classes and train.sample_shape == (3, 32, 32)
    rows = {row.tobytes(): label for row, label in zip(x, y, strict=True)}
    got = torch.cat([train.x, validation.x]), torch.cat([train.y, validation.y])
    assert [rows.pop(image.numpy().tobytes()) for image in got[0]] == got[1].tolist()
    assert not rows


def test_the_default_root_is_the_environment_variable(tmp_path, monkeypatch):
    write_mnist(tmp_path)
    monkeypatch.setenv("BPFREE_DATA", str(tmp_path))
    assert len(load("mnist", validation_size=10).train) == 40
    with pytest.raises(DataNotFound, match=r"elsewhere"):
        load("mnist", root=tmp_path / "elsewhere")


def test_the_split_depends_only_on_split_seed(tmp_path):
    write_mnist(tmp_path)

    def split(**options):
        return load("mnist", root=tmp_path, **({"validation_size": 10} | options))

    torch.manual_seed(0)
    first = split()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    again = split()
    assert ids(first.train) == ids(again.train) and ids(first.validation) == ids(again.validation)
    assert torch.equal(torch.get_rng_state(), state)
    other = split(split_seed=1)
    assert set(ids(first.validation)) != set(ids(other.validation)) and ids(first.test) == ids(other.test)
    assert ids(split(train_size=15).train) == ids(first.train)[:15]
    assert ids(split(train_size=15, validation_size=20).train) == ids(first.train)[:15]


def test_digits_are_split_60_20_20_and_stratified():
    train, _, test = splits = load("digits")
    assert [len(data) for data in splits] == [1078, 360, 359]
    assert train.x.dtype == torch.uint8 and train.x.max() == 255 and train.sample_shape == (1, 8, 8)
    total = torch.cat([data.y for data in splits]).bincount()
    for data, share in zip(splits, (0.6, 0.2, 0.2), strict=True):
        assert (data.y.bincount() - share * total).abs().max() <= 2
    assert torch.equal(load("digits", split_seed=1).test.x, test.x)
    assert not torch.equal(load("digits", split_seed=1).train.x, train.x)
    assert len(load("digits", validation_size=100, train_size=500).train) == 500


def test_digits_equal_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    images = [np.round(v * 255 / 16).astype(np.uint8).tobytes() for v in values]
    expected = sorted(zip(images, labels.tolist(), strict=True))
    splits = load("digits")
    got = [(x.numpy().tobytes(), int(y)) for data in splits for x, y in zip(data.x, data.y, strict=True)]
    assert sorted(got) == expected


def test_a_stratified_permutation_distributes_classes_evenly():
    y = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    order = _permutation(y, 0, stratified=True)
    assert sorted(order.tolist()) == list(range(100))
    for n in range(1, 101):
        counts = y[order[:n]].bincount(minlength=3)
        assert (counts - n * torch.tensor([0.6, 0.3, 0.1])).abs().max() <= 1.5
    assert not torch.equal(order, _permutation(y, 1, stratified=True))


def test_standardization_is_measured_on_the_training_set(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch, torchvision.datasets.CIFAR10, "labels")
    train, validation, test = load("cifar10", root=tmp_path, standardize=True, train_size=30)
    pixels = train.x.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(train.mean, pixels.mean((0, 2, 3)), rtol=1e-13)
    np.testing.assert_allclose(train.std, pixels.std((0, 2, 3)), rtol=1e-13)
    assert train.x.dtype == torch.uint8
    assert validation.mean == test.mean == train.mean and validation.std == test.std == train.std
    x, _ = train.batch(torch.arange(30))
    assert x.mean((0, 2, 3)).abs().max() < 1e-5 and (x.std((0, 2, 3)) - 1).abs().max() < 1e-3
    assert load("cifar10", root=tmp_path).train.mean is None


def test_only_the_training_set_is_augmented():
    train, validation, test = load("digits", augment=["shift"])
    assert train.augment == ("shift",) and not validation.augmented and not test.augmented


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_size": 41, "validation_size": 10}, r"train_size is 41; expected 1..40"),
        ({"train_size": 0, "validation_size": 10}, r"train_size is 0; expected 1..40"),
        ({"train_size": -1, "validation_size": 10}, r"train_size is -1"),
        ({"validation_size": 50}, r"validation_size is 50; expected 1..49"),
        ({"validation_size": 0}, r"validation_size is 0; expected 1..49"),
        ({}, r"validation_size is 10000; expected 1..49"),
        ({"augment": ["spin"]}, r"unknown name 'spin'; expected any of flip, crop, shift"),
        ({"path": "x"}, r"only image_folder"),
        ({"image_size": 8}, r"only image_folder"),
    ],
)
def test_invalid_options_raise_an_error(tmp_path, options, message):
    write_mnist(tmp_path)
    with pytest.raises(BadValue, match=message):
        load("mnist", root=tmp_path, **options)


def test_an_unknown_name_raises_an_error_that_lists_the_names():
    with pytest.raises(BadValue, match=r"no data set 'minst'; expected one of digits, mnist"):
        load("minst")


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mnist", "MNIST/raw"),
        ("fashion_mnist", "FashionMNIST/raw"),
        ("cifar10", "cifar-10-batches-py"),
        ("cifar100", "cifar-100-python"),
    ],
)
def test_missing_data_raise_an_error_with_the_folder_and_the_fix(tmp_path, name, folder):
    with pytest.raises(DataNotFound) as caught:
        load(name, root=tmp_path)
    for part in (name, str(tmp_path / folder), "download=True", "BPFREE_DATA"):
        assert part in str(caught.value)


def test_damaged_data_raise_data_not_found(tmp_path):
    write_mnist(tmp_path)
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataNotFound, match=r"remove damaged files"):
        load("mnist", root=tmp_path)


@pytest.fixture
def downloads(monkeypatch):
    """Make downloads fail; return the list of their destination folders."""
    folders = []

    def fail(url, download_root, **kwargs):
        folders.append(str(download_root))
        raise URLError("no route to host")

    for module in ("mnist", "cifar"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.download_and_extract_archive", fail)
    return folders


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_failed_download_raises_data_not_found(tmp_path, downloads, name):
    with pytest.raises(
        DataNotFound, match=rf"{name} cannot be read from {tmp_path}, and the download failed"
    ):
        load(name, root=tmp_path, download=True)
    assert downloads and all(folder.startswith(str(tmp_path)) for folder in downloads)


def test_by_default_downloads_go_only_to_the_cache_folder(tmp_path, downloads, monkeypatch):
    with pytest.raises(DataNotFound, match=r"the download failed"):
        load("mnist")
    assert downloads and all(folder.startswith(str(tmp_path / "cache" / "bpfree")) for folder in downloads)
    downloads.clear()
    with pytest.raises(DataNotFound, match=r"downloading is disabled"):
        load("mnist", download=False)
    monkeypatch.setenv("BPFREE_DATA", str(tmp_path / "mine"))
    with pytest.raises(DataNotFound, match=r"downloading is disabled"):
        load("mnist")
    assert not downloads and not (tmp_path / "mine").exists()


def test_existing_data_are_not_downloaded(tmp_path, downloads):
    write_mnist(tmp_path)
    assert len(load("mnist", root=tmp_path, validation_size=10, download=True).test) == 20
    assert not downloads and [entry.name for entry in tmp_path.iterdir()] == ["MNIST"]


def test_every_data_set_has_a_description():
    assert [name for name, _ in describe()] == list(NAMES)
    assert all(text and "\n" not in text for _, text in describe())
