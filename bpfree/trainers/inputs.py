"""What a user hands to a trainer, checked before anything computes: devices, data, batches, shapes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bpfree._errors import BadValue, BpfreeError
from bpfree.data import TensorData, as_data


def find_device(device: str | torch.device) -> torch.device:
    """The device called ``device``, with its number.

    Raises:
        BadValue: If there is no such kind of device, or this machine has none that can be used.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise BadValue(f"device = {device!r}: unknown; for example 'cpu', 'cuda' or 'cuda:1'") from None
    if found.type == "meta":
        raise BadValue("device = 'meta': it holds shapes and no values; try 'cpu'")
    if found.type != "cuda":
        return _usable(found)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (found.index or 0) >= count:
        raise BadValue(f"device = {str(device)!r}: this machine has {count} usable CUDA devices; try 'cpu'")
    return torch.empty(0, device=found).device


def _usable(device: torch.device) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, ImportError, NotImplementedError):
        raise BadValue(
            f"device = {str(device)!r}: this machine, or this build of torch, has none; try 'cpu'"
        ) from None


def find_dtype(net: nn.Module) -> torch.dtype:
    """The type in which a network computes: that of its parameters, float32 or float64.

    Raises:
        BadValue: If they are of another type, or of several.
    """
    found = {p.dtype for p in net.parameters() if p.is_floating_point()} or {torch.float32}
    if len(found) > 1:
        raise BadValue(
            f"the network's parameters are {' and '.join(sorted(map(str, found)))}: expected one type; "
            "convert it by net.float() or net.double()"
        )
    (dtype,) = found
    if dtype not in (torch.float32, torch.float64):
        raise BadValue(
            f"the network's parameters are {dtype}, too narrow to be trained in: convert it by net.float(), "
            "and set precision = 'bfloat16' to compute its products in bfloat16"
        )
    return dtype


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Inside, new floating point tensors are of ``dtype``."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def check_data(
    data: Any, n_classes: int | None, device: torch.device, dtype: torch.dtype = torch.float32
) -> TensorData:
    """What `as_data` makes of ``data``, on ``device``.

    Args:
        data: As for `Trainer.fit`.
        n_classes: How many classes the trainer was built for; None: it is not built.
        device: Where to.
        dtype: Type of the batches of samples.

    Raises:
        BadValue: If the data have another number of classes, or a sample is not finite.
    """
    found: Any = as_data(data, None if isinstance(data, TensorData) else n_classes)
    if n_classes is not None and found.n_classes != n_classes:
        raise BadValue(f"the trainer was built for {n_classes} classes, the data have {found.n_classes}")
    if isinstance(found, TensorData):
        found = replace(found, dtype=dtype)
    elif found.features.dtype != dtype:
        found = replace(found, features=found.features.to(dtype))
    _check_finite(found)
    return found.to(device)  # type: ignore[no-any-return]


def warn_if_shifted(data: Any) -> None:
    """Warn where training data have a sample of every class but the first, as labels that begin at 1 do."""
    if not isinstance(data, TensorData) or data.n_classes < 3:
        return
    found = torch.unique(data.y)
    if len(found) == data.n_classes - 1 and found[0] == 1:
        warnings.warn(
            f"{data.name}: the training labels are 1..{data.n_classes - 1}, none of {len(data)} is 0, and "
            "class 0 is learned all the same; if labels begin at 1, relabel y by y - 1, with one class less",
            stacklevel=3,
        )


def check_batch(
    x: Tensor, y: Tensor, n_classes: int | None, device: torch.device, dtype: torch.dtype = torch.float32
) -> None:
    """Check one batch, samples ``x [B, ...]`` and labels ``y [B]``.

    Raises:
        BadValue: If they do not fit together, are not finite or not floats, or lie on another device.
    """
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise BadValue(f"a batch of {type(x).__name__} and {type(y).__name__}: expected two tensors")
    if x.is_floating_point() and x.dtype != dtype:
        raise BadValue(f"x is {x.dtype}, the network {dtype}: convert x.to({dtype})")
    if not x.is_floating_point() and not x.is_complex():
        raise BadValue(f"x is {x.dtype}: expected floats, as TensorData.batch makes them; convert x.float()")
    _check_finite(TensorData(x, y, n_classes or int(y.max()) + 1, name="the batch"))
    if x.device != device:
        raise BadValue(f"the batch is on {x.device}, the network on {device}: move it there")


def _check_finite(data: TensorData) -> None:
    # A NaN, or an infinite value, is the smallest or the largest; nothing of the data's size is made.
    dtype = getattr(data, "dtype", data.x.dtype)
    if not data.x.is_floating_point() or torch.stack(torch.aminmax(data.x)).to(dtype).isfinite().all():
        return
    bad = (~data.x.flatten(1).to(dtype).isfinite()).any(1).nonzero().flatten()
    raise BadValue(
        f"{data.name}: x holds NaN or infinite values in {len(bad)} of {len(data.x)} samples, the first is "
        f"number {int(bad[0])}: leave them out, or put finite values there"
    )


@contextmanager
def accepting(sample_shape: Sequence[int]) -> Iterator[None]:
    """What torch raises inside is told as what it is: the network does not take samples of this shape."""
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
    """Two samples, ``[2, *sample_shape]``, of values that differ: an order that is not kept is found out."""
    count = 2 * int(torch.Size(sample_shape).numel())
    return torch.linspace(0, 1, count, device=device, dtype=dtype).view(2, *sample_shape)
