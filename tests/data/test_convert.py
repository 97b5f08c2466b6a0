"""Conversion of users' data: each type is converted correctly, or raises an error that names the fix."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from bpfree import BadValue
from bpfree.data import TensorData, as_data

X = torch.rand(12, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 4


class Generated(Dataset):
    """Data set whose samples are a function of the index."""

    def __init__(self, make, n=12):
        self.make, self.n = make, n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return self.make(index)


# ---- pairs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "x",
    [X.numpy(), X.double().numpy(), np.asfortranarray(X.numpy()), X.numpy()[::-1].copy()[::-1]],
    ids=["float32", "float64", "fortran", "backwards"],
)
def test_pairs_of_arrays_equal_pairs_of_tensors(x):
    x.flags.writeable = False
    data = as_data((x, Y.numpy().astype(np.int16)))
    assert torch.equal(data.batch(torch.arange(12))[0], X)
    assert data.y.dtype == torch.int64 and torch.equal(data.y, Y) and data.n_classes == 4


@pytest.mark.parametrize("y", [Y > 1, (Y > 1).numpy(), (Y > 1).to(torch.uint8)])
def test_boolean_labels_are_two_classes(y):
    data = as_data((X, y))
    assert data.n_classes == 2 and data.y.tolist() == (Y > 1).long().tolist()


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (Y + 1, r"labels 1\.\.4 and none is 0; expected 0\.\.3; replace y by y - 1, or pass .*n_classes=5"),
        (Y * 2, r"4 different labels, the highest 6; .*torch\.unique\(y, return_inverse=True\)\[1\]"),
        (Y.clamp(min=1) * 3, "3 different labels, the highest 9"),
        ((Y > 1) * 2 - 1, r"labels -1\.\.1; .*\(y > 0\)\.long\(\)"),
        (Y - 1, r"labels -1\.\.2; .*leave out samples without a label"),
        (torch.nn.functional.one_hot(Y), r"y \[12, 4\]; .*use y\.argmax\(1\)"),
        (torch.nn.functional.one_hot(Y).float(), r"use y\.argmax\(1\)"),
        (Y[:, None], r"y \[12, 1\]; .*use y\.squeeze\(1\)"),
        (Y.float(), r"y is torch\.float32; .*convert with y\.long\(\)"),
        (Y / 2, "has values that are not class labels"),
        (Y.cfloat(), "has values that are not class labels"),
        (np.array(list("abcd") * 3), "y is an array of <U1; expected numbers"),
        (np.array([None] * 12), "y is an array of object"),
    ],
)
def test_invalid_labels_raise_an_error_with_the_fix(y, message):
    with pytest.raises(BadValue, match=message):
        as_data((X, y))


def test_classes_without_samples_can_be_declared():
    assert as_data((X, Y * 2), n_classes=7).n_classes == 7
    assert TensorData(X, Y + 1, 5).n_classes == 5
    with pytest.raises(BadValue, match="replace y by y - 1"):
        TensorData(X, Y + 1, 4)


@pytest.mark.parametrize("x", [X.cfloat(), X.numpy().astype(np.complex128)])
def test_complex_samples_raise_an_error(x):
    with pytest.raises(BadValue, match=r"x is torch\.complex.*view_as_real.*x\.abs\(\)"):
        as_data((x, Y))


class Graphlike:
    edge_index = torch.zeros(2, 0)


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        (
            DataLoader(TensorDataset(X, Y), batch_size=3),
            r"DataLoader; .*\(loader\.dataset, batch_size=3\)",
        ),
        (
            Graphlike(),
            r"Graphlike of a graph; expected bpfree\.data\.GraphData; convert it by",
        ),
        ((X.tolist(), Y.tolist()), "pair of list and list; expected .*NumPy arrays"),
        (zip(X, Y, strict=True), "data is a zip; expected"),
    ],
)
def test_other_objects_raise_an_error_that_names_the_supported_types(obj, message):
    for kind in (BadValue, TypeError):
        with pytest.raises(kind, match=message):
            as_data(obj)


# ---- data sets -------------------------------------------------------------------------------------------


def jittered(probability):
    def make(i):
        return X[i] + (torch.rand(()) < probability), int(Y[i])

    return make


@pytest.mark.parametrize(
    "make",
    [
        jittered(0.5),
        jittered(0.1),
        lambda i: (X[i] + random.random(), int(Y[i])),
        lambda i: (X[i] + np.random.rand(), int(Y[i])),
        lambda i: (X[i], random.randrange(4)),
    ],
    ids=["half", "tenth", "python", "numpy", "labels"],
)
def test_a_random_data_set_raises_an_error(make):
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    with pytest.raises(BadValue, match=r"changes each time it is read.*augment="):
        as_data(Generated(make))
    with pytest.raises(BadValue, match="changes each time it is read"):
        as_data(Generated(make, n=1))


def test_checking_for_randomness_does_not_change_the_global_generators():
    def state():
        return torch.rand(3).tolist(), random.random(), np.random.rand()

    draws = Generated(lambda i: (X[i] + 0 * (torch.rand(()) + random.random() + np.random.rand()), int(Y[i])))
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    for i in range(len(draws)):
        draws[i]
    expected = state()
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    as_data(draws)
    assert state() == expected


def test_a_data_set_of_arrays_with_nan_is_read():
    data = as_data(Generated(lambda i: (X[i].numpy() * np.float32(np.nan), np.int64(Y[i]))))
    assert data.x.isnan().all() and torch.equal(data.y, Y)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda i: (X[i], 0.5 + i), "label of sample 0 of the Generated is 0.5; expected a class label"),
        (lambda i: (X[i], torch.nn.functional.one_hot(Y)[i]), r"is Tensor of shape \[4\]"),
        (lambda i: (X[i], "cat"), "is 'cat'; expected a class label"),
        (lambda i: (X[i], None), "is None; expected a class label"),
        (lambda i: (X[i], i, i), r"is a tuple of 3; expected \(tensor, int\)"),
        (lambda i: {"x": X[i], "y": 0}, r"is a dict; expected \(tensor, int\)"),
        (
            lambda i: (X[i].to(torch.float64 if i else torch.float32), 0),
            r"sample 1 .*float64, and the first is .*float32",
        ),
    ],
)
def test_an_invalid_sample_raises_an_error_with_its_index(make, message):
    with pytest.raises(BadValue, match=message):
        as_data(Generated(make))


def test_content_supports_bfloat16():
    assert TensorData(X.bfloat16(), Y, 4).content() != TensorData(X.bfloat16() + 1, Y, 4).content()


@pytest.mark.parametrize("values", [[0.5, 0.25], np.array([0.5, 0.25]), torch.tensor([0.5, 0.25])])
def test_mean_and_std_accept_any_sequence(values):
    x = torch.rand(12, 2, generator=torch.Generator().manual_seed(0))
    data = TensorData(x, Y, 4, mean=values, std=values)
    assert data.mean == data.std == (0.5, 0.25)
    torch.testing.assert_close(data.batch(torch.arange(12))[0], (x - data._center) / data._scale)


@pytest.mark.parametrize("values", [0.5, ("a", "b"), (0.5, float("nan")), (0.5, float("inf"))])
def test_invalid_mean_raises_an_error(values):
    with pytest.raises(BadValue, match=r"mean is .*; expected"):
        TensorData(X[:, :2], Y, 4, mean=values, std=(1.0, 1.0))
