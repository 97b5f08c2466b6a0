"""Conversion of pairs of tensors or arrays, and of map-style data sets, to `TensorData`."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from bpfree._errors import BadKind, BadValue
from bpfree.data._graph_data import GraphData
from bpfree.data._tensors import TensorData

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Number of samples of a data set that are read a second time, to detect random data sets.
READ_AGAIN = 64


@runtime_checkable
class _MapStyle(Protocol):
    """A data set with a length, whose samples are read by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> object: ...


def as_data(obj: object, n_classes: int | None = None) -> TensorData:
    """Convert data to TensorData.

    Args:
        obj: TensorData or GraphData (returned unchanged); a pair (x, y) of tensors or NumPy arrays with
            integer labels; or a map-style torch Dataset of (tensor, int), which is read once and stacked.
        n_classes: Number of classes. Default: the highest label plus one; then every class must occur.

    Raises:
        BadKind: If the data are of another type.
        BadValue: If tensors are inconsistent, if a data set returns other samples when it is read again, or
            if TensorData has another number of classes than `n_classes`.
    """
    if isinstance(obj, TensorData | GraphData):
        if n_classes not in (None, obj.n_classes):
            raise BadValue(
                f"n_classes is {n_classes}, but the data have {obj.n_classes} classes: {obj!r}; leave "
                "n_classes out"
            )
        return obj  # type: ignore[return-value]
    if (
        isinstance(obj, Dataset)
        and not isinstance(obj, IterableDataset)
        and hasattr(obj, "__len__")
        and isinstance(obj, _MapStyle)
    ):
        x, y = _stack(obj)
    elif isinstance(obj, Sequence) and len(obj) == 2 and all(is_array(part) for part in obj):
        x, y = as_tensor(obj[0], "x"), as_tensor(obj[1], "y")
    else:
        raise BadKind(_not_data(obj))
    if not (y.is_floating_point() or y.is_complex()):
        y = y.long()
    return TensorData(x, y, _n_classes(y) if n_classes is None else n_classes)


def is_array(value: object) -> TypeGuard[Tensor | NDArray[np.generic]]:
    """Whether `value` is a tensor or a NumPy array."""
    if isinstance(value, Tensor):
        return True
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def as_tensor(value: Tensor | NDArray[np.generic], name: str) -> Tensor:
    """Return a tensor or NumPy array as a tensor that requires no gradient.

    Args:
        value: The tensor or array.
        name: Name of the value in messages.

    Raises:
        BadValue: If torch has no type for the values of an array.
    """
    if isinstance(value, Tensor):
        return value.detach()
    import numpy as np

    try:
        # Copies arrays that are read-only or have negative strides, which torch does not accept.
        return torch.from_numpy(np.require(value, requirements=("C", "W")))
    except TypeError:
        raise BadValue(
            f"{name} is an array of {value.dtype}; expected numbers; use the labels 0..C-1 for C classes, "
            "and convert features to float32"
        ) from None


def _not_data(obj: object) -> str:
    """Error message for an object that cannot be converted."""
    expected = (
        "expected TensorData, a pair of tensors or NumPy arrays (x, y), or a map-style torch Dataset of "
        "(tensor, int) with a length"
    )
    if isinstance(obj, DataLoader):
        return (
            f"data is a DataLoader; {expected}; call fit(loader.dataset, batch_size={obj.batch_size}), which "
            "does not use the loader's sampler and collate_fn"
        )
    if hasattr(obj, "edge_index"):
        return (
            f"data is a {type(obj).__name__} of a graph; expected bpfree.data.GraphData; convert it by "
            "GraphData.from_pyg(data, 'train')"
        )
    kind = type(obj).__name__
    if isinstance(obj, tuple | list) and len(obj) == 2:
        kind = f"pair of {type(obj[0]).__name__} and {type(obj[1]).__name__}"
    return f"data is a {kind}; {expected}"


def _n_classes(y: Tensor) -> int:
    """The highest of the labels `y` plus one.

    Raises:
        BadValue: If a lower label does not occur.
    """
    if y.dtype != torch.int64 or not y.numel():
        return 1  # TensorData raises the error for such labels
    if y.ndim != 1 or int(y.min()) < 0:
        return max(1, int(y.max()) + 1)
    labels = torch.unique(y)
    n_classes = int(labels[-1]) + 1
    if len(labels) == n_classes:
        return n_classes
    alternative = f"or pass TensorData(x, y, n_classes={n_classes}) if some classes have no samples"
    if len(labels) == n_classes - 1 and int(labels[0]) == 1:
        raise BadValue(
            f"y has labels 1..{n_classes - 1} and none is 0; expected 0..{n_classes - 2}; "
            f"replace y by y - 1, {alternative}"
        )
    raise BadValue(
        f"y has {len(labels)} different labels, the highest {n_classes - 1}; expected each of "
        f"0..{n_classes - 1}; replace y by torch.unique(y, return_inverse=True)[1], {alternative}"
    )


# ---- data sets -------------------------------------------------------------------------------------------


def _stack(dataset: _MapStyle) -> tuple[Tensor, Tensor]:
    """Read all samples (tensor, int) of a data set: x `[N, ...]` and y `[N]`."""
    name = type(dataset).__name__
    if len(dataset) == 0:
        raise BadValue(f"the {name} is empty; expected at least one sample")
    xs: list[Tensor] = []
    ys: list[int] = []
    for i in range(len(dataset)):
        x, y = _sample(dataset, i)
        if xs and x.shape != xs[0].shape:
            raise BadValue(
                f"sample {i} of the {name} has shape {list(x.shape)}, and the first has "
                f"{list(xs[0].shape)}; expected equal shapes; resize or crop samples in the data set"
            )
        if xs and x.dtype != xs[0].dtype:
            raise BadValue(
                f"sample {i} of the {name} is {x.dtype}, and the first is {xs[0].dtype}; expected equal "
                "types; convert samples in the data set"
            )
        xs.append(x)
        ys.append(y)
    stacked = torch.stack(xs), torch.tensor(ys)
    _check_repeatable(dataset, *stacked)
    return stacked


def _sample(dataset: _MapStyle, i: int) -> tuple[Tensor, int]:
    name, item = type(dataset).__name__, dataset[i]
    if not isinstance(item, tuple | list) or len(item) != 2:
        size = f" of {len(item)}" if isinstance(item, tuple | list) else ""
        raise BadKind(f"sample {i} of the {name} is a {type(item).__name__}{size}; expected (tensor, int)")
    x, y = item
    if not is_array(x):
        raise BadKind(
            f"sample {i} of the {name} is a {type(x).__name__}; expected a tensor; "
            "add a transform to the data set, such as torchvision.transforms.PILToTensor()"
        )
    return as_tensor(x, f"sample {i} of the {name}"), _label(y, f"the label of sample {i} of the {name}")


def _label(y: Any, name: str) -> int:
    """Convert an int, or a tensor or array of one value, to a class label; `name` is its name in messages."""
    try:
        value = y.item() if hasattr(y, "item") else y
        if not isinstance(value, str | bytes) and int(value) == value:
            return int(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass
    given = f"{type(y).__name__} of shape {list(y.shape)}" if getattr(y, "ndim", 0) else repr(y)
    raise BadValue(f"{name} is {given}; expected a class label, an int from 0 on")


def _check_repeatable(dataset: _MapStyle, x: Tensor, y: Tensor) -> None:
    """Check that a data set returns the same samples and labels when it is read again.

    Raises:
        BadValue: If it does not.
    """
    n = len(x)
    with _generators_restored():
        for k in range(READ_AGAIN):
            i = k % n if n < READ_AGAIN else k * n // READ_AGAIN
            again, label = _sample(dataset, i)
            if label != int(y[i]) or not _equal(again, x[i]):
                raise BadValue(
                    f"sample {i} of the {type(dataset).__name__} changes each time it is read, as with a "
                    "random transform; a data set is read once, before training, so all epochs would use the "
                    "same random values; remove the random transform, and pass TensorData(x, y, n_classes, "
                    "augment=('flip', 'crop')) to augment training images"
                )


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, where NaN equals NaN."""
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())


@contextmanager
def _generators_restored() -> Iterator[None]:
    """Restore the states of the global generators of torch, NumPy and Python at exit."""
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
