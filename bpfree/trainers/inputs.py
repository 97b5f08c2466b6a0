"""What a user hands to a trainer, checked before anything computes: devices, data, batches, shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

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
    if found.type != "cuda":
        return found
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (found.index or 0) >= count:
        raise BadValue(f"device = {str(device)!r}: this machine has {count} usable CUDA devices; try 'cpu'")
    return torch.empty(0, device=found).device


def check_data(data: Any, n_classes: int | None, device: torch.device) -> TensorData:
    """What `as_data` makes of ``data``, on ``device``.

    Args:
        data: As for `Trainer.fit`.
        n_classes: How many classes the trainer was built for; None: it is not built.
        device: Where to.

    Raises:
        BadValue: If the data have another number of classes, or a sample is not finite.
    """
    found = as_data(data, None if isinstance(data, TensorData) else n_classes)
    if n_classes is not None and found.n_classes != n_classes:
        raise BadValue(f"the trainer was built for {n_classes} classes, the data have {found.n_classes}")
    _check_finite(found)
    return found.to(device)


def check_batch(x: Tensor, y: Tensor, n_classes: int | None, device: torch.device) -> None:
    """Check one batch, samples ``x [B, ...]`` and labels ``y [B]``.

    Raises:
        BadValue: If they do not fit together, are not finite or not floats, or lie on another device.
    """
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise BadValue(f"a batch of {type(x).__name__} and {type(y).__name__}: expected two tensors")
    if not x.is_floating_point():
        raise BadValue(f"x is {x.dtype}: expected floats, as TensorData.batch makes them; convert x.float()")
    _check_finite(TensorData(x, y, n_classes or int(y.max()) + 1, name="the batch"))
    if x.device != device:
        raise BadValue(f"the batch is on {x.device}, the network on {device}: move it there")


def _check_finite(data: TensorData) -> None:
    # A NaN, or an infinite value, is the smallest or the largest; nothing of the data's size is made.
    if not data.x.is_floating_point() or torch.stack(torch.aminmax(data.x)).isfinite().all():
        return
    bad = (~data.x.flatten(1).isfinite()).any(1).nonzero().flatten()
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
    except (RuntimeError, ValueError, IndexError) as error:
        raise BadValue(
            f"the network does not accept samples of shape {tuple(sample_shape)}: {error}"
        ) from error


def probe_samples(sample_shape: Sequence[int], device: torch.device) -> Tensor:
    """Two samples, ``[2, *sample_shape]``, of values that differ: an order that is not kept is found out."""
    count = 2 * int(torch.Size(sample_shape).numel())
    return torch.linspace(0, 1, count, device=device).view(2, *sample_shape)
