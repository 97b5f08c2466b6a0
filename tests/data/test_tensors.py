from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from bpfree._errors import BadValue
from bpfree.data import TensorData, as_data

X = torch.randint(256, (12, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 4
INDICES = torch.tensor([7, 0, 7, 11])


def test_a_batch_of_images_has_floats_in_0_to_1():
    x, y = TensorData(X, Y, 4).batch(INDICES)
    assert x.dtype == torch.float32 and y.dtype == torch.int64
    np.testing.assert_array_equal(x.numpy(), X.numpy()[INDICES.numpy()].astype(np.float32) / np.float32(255))
    assert y.tolist() == [3, 0, 3, 3]


def test_dark_images_are_also_divided_by_255():
    x, _ = TensorData(torch.ones_like(X), Y, 4).batch(INDICES)
    assert x.unique().tolist() == [float(np.float32(1) / np.float32(255))]


def test_standardization_equals_numpy_in_float64():
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 1.5)
    x, _ = TensorData(X, Y, 4, mean=mean, std=std).batch(INDICES)
    expected = (X.numpy()[INDICES.numpy()] / 255.0 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(x.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(12, 3), (12, 3, 5), (12, 3, 5, 5)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_floats_are_standardized_but_not_divided_by_255(shape, dtype):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul(5).to(dtype)
    x, _ = TensorData(values, Y, 4, mean=(0.5, 0.0, 0.0), std=(2.0, 1.0, 1.0)).batch(INDICES)
    expected = values[INDICES].float()
    expected[:, 0] = (expected[:, 0] - 0.5) / 2
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, expected)


@pytest.mark.parametrize("values", [X, torch.rand(12, 3, 8, 8)])
def test_batch_does_not_modify_the_data(values):
    before = values.clone()
    data = TensorData(values, Y, 4, mean=(0.5,) * 3, std=(0.5,) * 3, augment=("flip", "crop"))
    x, _ = data.batch(torch.arange(12), torch.Generator().manual_seed(0))
    x.zero_()
    assert torch.equal(data.x, before) and data.x.dtype == before.dtype


def test_a_batch_is_augmented_only_with_a_generator_and_names():
    plain, augmented = TensorData(X, Y, 4), TensorData(X, Y, 4, augment=("crop",))
    assert augmented.augmented and not plain.augmented
    expected = plain.batch(INDICES)[0]
    assert torch.equal(augmented.batch(INDICES)[0], expected)
    assert torch.equal(plain.batch(INDICES, torch.Generator().manual_seed(0))[0], expected)
    first, again = (augmented.batch(INDICES, torch.Generator().manual_seed(0))[0] for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first, expected)


def test_shift_pads_with_zeros_before_standardization():
    white = torch.full((12, 1, 8, 8), 255, dtype=torch.uint8)
    data = TensorData(white, Y, 4, mean=(0.5,), std=(0.5,), augment=("shift",))
    x, _ = data.batch(torch.arange(12), torch.Generator().manual_seed(0))
    assert sorted(x.unique().tolist()) == [-1.0, 1.0]


def test_take_selects_samples_and_preserves_attributes():
    data = TensorData(X, Y, 4, mean=(0.5,) * 3, std=(0.5,) * 3, augment=("flip",), name="toy")
    part = data.take(INDICES)
    assert len(part) == 4 and torch.equal(part.x, X[INDICES]) and torch.equal(part.y, Y[INDICES])
    attributes = ("n_classes", "mean", "std", "augment", "name", "sample_shape")
    assert all(getattr(part, k) == getattr(data, k) for k in attributes)


def test_properties():
    data = TensorData(X, Y, 4, name="toy")
    assert len(data) == 12 and data.sample_shape == (3, 8, 8)
    assert repr(data) == "TensorData('toy', 12 samples [3, 8, 8] torch.uint8, 4 classes, cpu)"
    assert torch.equal(data.to("cpu").x, X)
    with pytest.raises(FrozenInstanceError):
        data.n_classes = 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X.int()}, r"x is torch.int32"),
        ({"x": X.flatten(1)}, r"uint8 \[12, 192\]"),
        ({"x": X[:0], "y": Y[:0]}, r"at least one sample"),
        ({"x": torch.rand(12)}, r"x is \[12\]; expected \[N, ...\]"),
        ({"y": Y[:5]}, r"y \[5\].*\[12\]"),
        ({"y": Y[:, None]}, r"y \[12, 1\]"),
        ({"y": Y.int()}, r"y is torch.int32.*y.long\(\)"),
        ({"y": Y - 1}, r"labels -1..2; expected 0..3"),
        ({"n_classes": 3}, r"labels 0..3; expected 0..2"),
        ({"mean": (0.0, 0.0, 0.0)}, r"give both or neither"),
        ({"mean": (0.0,), "std": (1.0,)}, r"3 channels"),
        ({"mean": (0.0, 0.0, 0.0), "std": (1.0, 0.0, 1.0)}, r"above 0"),
        ({"mean": (0.0, 0.0, 0.0), "std": (1.0, float("nan"), 1.0)}, r"above 0"),
        ({"augment": ("spin",)}, r"'spin'"),
        ({"x": torch.rand(12, 3), "augment": ("flip",)}, r"needs images.*\[12, 3\]"),
        ({"x": X.to("meta")}, r"meta.*one device"),
    ],
)
def test_inconsistent_values_raise_an_error(change, message):
    with pytest.raises(BadValue, match=message):
        replace(TensorData(X, Y, 4, name="toy"), **change)


def test_as_data_returns_tensor_data_unchanged():
    data = TensorData(X, Y, 4)
    assert as_data(data) is data and as_data(data, n_classes=4) is data
    with pytest.raises(BadValue, match=r"n_classes is 5"):
        as_data(data, n_classes=5)


def test_as_data_of_a_pair_counts_the_classes():
    assert as_data((X, Y)).n_classes == 4
    data = as_data([X, Y.to(torch.uint8)], n_classes=6)
    assert data.n_classes == 6 and data.y.dtype == torch.int64
    with pytest.raises(BadValue, match=r"y is torch.float32"):
        as_data((X, Y.float()))


class Pairs(Dataset):
    def __init__(self, pairs):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        return self.pairs[index]


class Stream(IterableDataset):
    def __iter__(self):
        yield X[0], 0


@pytest.mark.parametrize("dataset", [TensorDataset(X, Y), Pairs(list(zip(X, Y.tolist(), strict=True)))])
def test_as_data_reads_a_dataset_once(dataset):
    data = as_data(Subset(dataset, [3, 1]), n_classes=4)
    assert torch.equal(data.x, X[[3, 1]]) and data.y.tolist() == [3, 1] and data.n_classes == 4


@pytest.mark.parametrize("obj", [Stream(), X, (X,), (X, [0]), "mnist", None])
def test_as_data_raises_an_error_for_other_objects(obj):
    with pytest.raises(TypeError, match=r"expected TensorData, a pair"):
        as_data(obj)


def test_as_data_names_the_invalid_sample():
    with pytest.raises(TypeError, match=r"sample 1 of the Pairs is a str.*transform"):
        as_data(Pairs([(X[0], 0), ("a", 1)]))
    with pytest.raises(BadValue, match=r"sample 1 .*\[3, 8, 4\].*\[3, 8, 8\]"):
        as_data(Pairs([(X[0], 0), (X[1, :, :, :4], 1)]))
    with pytest.raises(BadValue, match=r"empty"):
        as_data(Pairs([]))
