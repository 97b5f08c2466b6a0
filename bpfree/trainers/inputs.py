"""Checks of the inputs of a trainer: devices, data types, data, batches, shapes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from bpfree._errors import BadValue, BpfreeError
from bpfree.data import GraphData, TensorData, as_data


def find_device(device: str | torch.device) -> torch.device:
    """The device with this name, with its index.

    Raises:
        BadValue: If there is no such type of device, or this machine has no usable device of the type.
    """
    try:
        result = torch.device(device)
    except (RuntimeError, TypeError):
        raise BadValue(
            f"device = {device!r}: unknown; expected a device such as 'cpu', 'cuda' or 'cuda:1'"
        ) from None
    if result.type == "meta":
        raise BadValue("device = 'meta': its tensors have shapes and no values; try 'cpu'")
    if result.type != "cuda":
        return _usable(result)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (result.index or 0) >= count:
        raise BadValue(f"device = {str(device)!r}: this machine has {count} usable CUDA devices; try 'cpu'")
    return torch.empty(0, device=result).device


def _usable(device: torch.device) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, ImportError, NotImplementedError):
        raise BadValue(
            f"device = {str(device)!r}: this machine, or this build of torch, has none; try 'cpu'"
        ) from None


def find_dtype(net: nn.Module) -> torch.dtype:
    """The dtype of a network's parameters, float32 or float64.

    Raises:
        BadValue: If they have another dtype, or several.
    """
    dtypes = {p.dtype for p in net.parameters() if p.is_floating_point()} or {torch.float32}
    if len(dtypes) > 1:
        raise BadValue(
            f"the network's parameters are {' and '.join(sorted(map(str, dtypes)))}: expected one dtype; "
            "convert it by net.float() or net.double()"
        )
    (dtype,) = dtypes
    if dtype not in (torch.float32, torch.float64):
        raise BadValue(
            f"the network's parameters are {dtype}, which is too narrow for weights: convert it by "
            "net.float(), and set precision = 'bfloat16' to compute its products in bfloat16"
        )
    return dtype


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """A context in which new floating point tensors have the dtype ``dtype``."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def check_data(
    data: object, n_classes: int | None, device: torch.device, dtype: torch.dtype = torch.float32
) -> TensorData:
    """Convert data by `as_data`, check them, and move them to ``device``.

    Args:
        data: As for `Trainer.fit`.
        n_classes: Number of classes that the trainer was built for; None: it is not built.
        device: The device.
        dtype: Floating point type of batches.

    Returns:
        The data; `GraphData` are returned as such.

    Raises:
        BadValue: If the data have another number of classes, or a sample is not finite.
    """
    converted = as_data(data, None if isinstance(data, TensorData) else n_classes)
    if n_classes is not None and converted.n_classes != n_classes:
        raise BadValue(f"the trainer was built for {n_classes} classes, the data have {converted.n_classes}")
    checked = _with_dtype(converted, dtype)
    _check_finite(checked)
    return cast(TensorData, checked.to(device))


def _with_dtype(data: object, dtype: torch.dtype) -> TensorData | GraphData:
    """The same data, whose batches have the dtype ``dtype``."""
    if isinstance(data, TensorData):
        return replace(data, dtype=dtype)
    assert isinstance(data, GraphData)
    return data if data.features.dtype == dtype else replace(data, features=data.features.to(dtype))


def warn_if_shifted(data: object) -> None:
    """Warn if training data have a sample of every class except the first, as with labels that start at 1."""
    if not isinstance(data, TensorData) or data.n_classes < 3:
        return
    classes = torch.unique(data.y)
    if len(classes) == data.n_classes - 1 and classes[0] == 1:
        warnings.warn(
            f"{data.name}: the training labels are 1..{data.n_classes - 1}, none of {len(data)} is 0, and "
            "class 0 has no samples; if labels start at 1, relabel y by y - 1, with one class less",
            stacklevel=3,
        )


def check_batch(
    x: Tensor, y: Tensor, n_classes: int | None, device: torch.device, dtype: torch.dtype = torch.float32
) -> None:
    """Check one batch, samples ``x [B, ...]`` and labels ``y [B]``.

    Raises:
        BadValue: If they do not fit together, are not finite or not floats, or are on another device.
    """
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise BadValue(f"a batch of {type(x).__name__} and {type(y).__name__}: expected two tensors")
    if x.is_floating_point() and x.dtype != dtype:
        raise BadValue(f"x is {x.dtype}, the network {dtype}: convert x.to({dtype})")
    if not x.is_floating_point() and not x.is_complex():
        raise BadValue(f"x is {x.dtype}: expected floats, as TensorData.batch returns; convert x.float()")
    _check_finite(TensorData(x, y, n_classes or int(y.max()) + 1, name="the batch"))
    if x.device != device:
        raise BadValue(f"the batch is on {x.device}, the network on {device}: move it there")


def _check_finite(data: TensorData | GraphData) -> None:
    # The minimum or the maximum is NaN or infinite if any value is. This allocates no copy of the data.
    dtype = data.dtype if isinstance(data, TensorData) else data.x.dtype
    if not data.x.is_floating_point() or torch.stack(torch.aminmax(data.x)).to(dtype).isfinite().all():
        return
    bad = (~data.x.flatten(1).to(dtype).isfinite()).any(1).nonzero().flatten()
    raise BadValue(
        f"{data.name}: x has NaN or infinite values in {len(bad)} of {len(data.x)} samples, the first is "
        f"number {int(bad[0])}: remove these samples, or replace the values by finite ones"
    )


@contextmanager
def accepting(sample_shape: Sequence[int]) -> Iterator[None]:
    """A context that raises errors of torch as a `BadValue` that names the shape of the samples."""
    try:
        yield
    except (BpfreeError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
        raise BadValue(
            f"the network does not accept samples of shape {tuple(sample_shape)}: {error}"
        ) from error


def probe_samples(
    sample_shape: Sequence[int], device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Two samples ``[2, *sample_shape]``. All values differ, so that a change of their order is detected."""
    count = 2 * int(torch.Size(sample_shape).numel())
    return torch.linspace(0, 1, count, device=device, dtype=dtype).view(2, *sample_shape)
