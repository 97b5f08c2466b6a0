"""What users hold, made into `TensorData`: pairs of tensors or arrays, and map-style data sets."""

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from bpfree._errors import BadKind, BadValue
from bpfree.data._graph_data import GraphData
from bpfree.data._tensors import TensorData

#: Samples of a data set that are read once more, to find out whether it is random.
READ_AGAIN = 64


def as_data(obj: Any, n_classes: int | None = None) -> TensorData:
    """Make TensorData of what a user is likely to hold.

    Args:
        obj: TensorData or GraphData (returned as it is); a pair (x, y) of tensors or NumPy arrays with
            integer labels; or a map-style torch Dataset of (tensor, int), read and stacked once.
        n_classes: number of classes; by default one more than the highest label, and then every class must
            have a sample.

    Raises BadKind for anything else, BadValue for tensors that do not fit together, for a data set that gives
    other samples when it is read again and, with TensorData, for another `n_classes` than its own.
    """
    if isinstance(obj, TensorData | GraphData):
        if n_classes not in (None, obj.n_classes):
            raise BadValue(f"n_classes is {n_classes}, but {obj!r} was given; leave n_classes out")
        return obj  # type: ignore[return-value]
    if isinstance(obj, Dataset) and not isinstance(obj, IterableDataset) and hasattr(obj, "__len__"):
        x, y = _stack(obj)
    elif isinstance(obj, Sequence) and len(obj) == 2 and all(is_array(part) for part in obj):
        x, y = as_tensor(obj[0], "x"), as_tensor(obj[1], "y")
    else:
        raise BadKind(_not_data(obj))
    if not (y.is_floating_point() or y.is_complex()):
        y = y.long()
    return TensorData(x, y, _n_classes(y) if n_classes is None else n_classes)


def is_array(value: Any) -> bool:
    """Whether `value` is a tensor or a NumPy array."""
    if isinstance(value, Tensor):
        return True
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def as_tensor(value: Any, what: str) -> Tensor:
    """A tensor or NumPy array `value` as a tensor; `what` is its name in messages.

    Raises BadValue for an array of values that no tensor holds.
    """
    if isinstance(value, Tensor):
        return value.detach()
    import numpy as np

    try:
        # A copy where the array cannot be written to, or its memory runs backwards.
        return torch.from_numpy(np.require(value, requirements=("C", "W")))
    except TypeError:
        raise BadValue(
            f"{what} is an array of {value.dtype}; expected numbers; number classes from 0, and convert "
            "features to float32"
        ) from None


def _not_data(obj: Any) -> str:
    """What to say of an object that is no data."""
    expected = (
        "expected TensorData, a pair of tensors or NumPy arrays (x, y), or a map-style torch Dataset of "
        "(tensor, int) with a length"
    )
    if isinstance(obj, DataLoader):
        return (
            f"data is a DataLoader; {expected}; give its data set, and fit its batch size: "
            f"fit(loader.dataset, batch_size={obj.batch_size}); its sampler and collate_fn are not used"
        )
    if hasattr(obj, "edge_index"):
        return (
            f"data is a {type(obj).__name__} of a graph; expected bpfree.data.GraphData; make it by "
            "GraphData.from_pyg(data, 'train')"
        )
    kind = type(obj).__name__
    if isinstance(obj, tuple | list) and len(obj) == 2:
        kind = f"pair of {type(obj[0]).__name__} and {type(obj[1]).__name__}"
    return f"data is a {kind}; {expected}"


def _n_classes(y: Tensor) -> int:
    """One more than the highest of the labels `y`, all of which must be there."""
    if y.dtype != torch.int64 or not y.numel():
        return 1  # what is wrong with such labels is told where the data are made
    if y.ndim != 1 or int(y.min()) < 0:
        return max(1, int(y.max()) + 1)
    found = torch.unique(y)
    n_classes = int(found[-1]) + 1
    if len(found) == n_classes:
        return n_classes
    explicit = f"or give TensorData(x, y, n_classes={n_classes}) if classes without a sample are meant"
    if len(found) == n_classes - 1 and int(found[0]) == 1:
        raise BadValue(
            f"y has labels 1..{n_classes - 1} and none is 0; expected 0..{n_classes - 2}; "
            f"relabel y by y - 1, {explicit}"
        )
    raise BadValue(
        f"y has {len(found)} different labels, the highest {n_classes - 1}; expected each of "
        f"0..{n_classes - 1}; relabel y by torch.unique(y, return_inverse=True)[1], {explicit}"
    )


# ---- data sets -------------------------------------------------------------------------------------------


def _stack(dataset: Any) -> tuple[Tensor, Tensor]:
    """Read a whole map-style data set of (tensor, int) into x `[N, ...]` and y `[N]`."""
    name = type(dataset).__name__
    if len(dataset) == 0:
        raise BadValue(f"the {name} is empty; expected at least one sample")
    xs: list[Tensor] = []
    ys: list[int] = []
    for i in range(len(dataset)):
        x, y = _sample(dataset, i)
        if xs and x.shape != xs[0].shape:
            raise BadValue(
                f"sample {i} of the {name} has shape {list(x.shape)}, "
                f"the first {list(xs[0].shape)}; expected one shape; resize or crop in the data set"
            )
        if xs and x.dtype != xs[0].dtype:
            raise BadValue(
                f"sample {i} of the {name} is {x.dtype}, the first {xs[0].dtype}; expected one type; convert "
                "in the data set"
            )
        xs.append(x)
        ys.append(y)
    found = torch.stack(xs), torch.tensor(ys)
    _check_same_again(dataset, *found)
    return found


def _sample(dataset: Any, i: int) -> tuple[Tensor, int]:
    name, item = type(dataset).__name__, dataset[i]
    if not isinstance(item, tuple | list) or len(item) != 2:
        size = f" of {len(item)}" if isinstance(item, tuple | list) else ""
        raise BadKind(f"sample {i} of the {name} is a {type(item).__name__}{size}; expected (tensor, int)")
    x, y = item
    if not is_array(x):
        raise BadKind(
            f"sample {i} of the {name} is a {type(x).__name__}; expected a tensor; "
            "give the data set a transform such as torchvision.transforms.PILToTensor()"
        )
    return as_tensor(x, f"sample {i} of the {name}"), _label(y, f"the label of sample {i} of the {name}")


def _label(y: Any, what: str) -> int:
    """A class number, given as an int or as a tensor or array of one value."""
    try:
        value = y.item() if hasattr(y, "item") else y
        if not isinstance(value, str | bytes) and int(value) == value:
            return int(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass
    given = f"{type(y).__name__} of shape {list(y.shape)}" if getattr(y, "ndim", 0) else repr(y)
    raise BadValue(f"{what} is {given}; expected a class number, an int from 0 on")


def _check_same_again(dataset: Any, x: Tensor, y: Tensor) -> None:
    """Refuse a data set that gives other samples or labels than it gave before."""
    n = len(x)
    with _generators_put_back():
        for k in range(READ_AGAIN):
            i = k % n if n < READ_AGAIN else k * n // READ_AGAIN
            again, label = _sample(dataset, i)
            if label != int(y[i]) or not _equal(again, x[i]):
                raise BadValue(
                    f"sample {i} of the {type(dataset).__name__} is another each time it is read, as under a "
                    "random transform; a data set is read once, before training, and every epoch would see "
                    "the same draw; leave the randomness out, and give TensorData(x, y, n_classes, "
                    "augment=('flip', 'crop')) to vary training images"
                )


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, NaN where NaN is."""
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())


@contextmanager
def _generators_put_back() -> Iterator[None]:
    """Afterwards the global generators of torch, NumPy and Python are as they were."""
    numpy = sys.modules.get("numpy")
    python, array = random.getstate(), None if numpy is None else numpy.random.get_state()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=gpus):
            yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(array)
