"""Counts the rows that the modules of a network send to physical devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from bpfree.physics.device import Device, Purpose


class CountedModule(nn.Module):
    """Base class of modules that send rows to a physical device, where each row is counted.

    A subclass sends each row once: it adds no rows to fill a batch, and computes none of them twice.

    Attributes:
        purpose: Purpose that rows are counted under; set it with `counting_passes`.
        infer_shapes: If True, no row is sent: the output has the right shape and a fixed content. Set it with
            `inferring_shapes`.
    """

    purpose: Purpose = "train"
    infer_shapes: bool = False

    @property
    def physical_device(self) -> Device | None:
        """The device. Several modules may share one. None if the module sends no rows."""
        return None


def counted_modules(module: nn.Module) -> list[CountedModule]:
    """Return the modules inside ``module`` that have a physical device, in order."""
    return [m for m in module.modules() if isinstance(m, CountedModule) and m.physical_device is not None]


def physical_devices(module: nn.Module) -> list[Device]:
    """Return the physical devices inside ``module``, each one once, in order."""
    devices = [m.physical_device for m in counted_modules(module)]
    return list({id(device): device for device in devices if device is not None}.values())


def passes(module: nn.Module) -> dict[str, int]:
    """Return the rows sent so far to all devices inside ``module``, by purpose; empty without a device."""
    total: dict[str, int] = {}
    for device in physical_devices(module):
        for purpose, rows in device.passes.items():
            total[purpose] = total.get(purpose, 0) + rows
    return total


@contextmanager
def counting_passes(module: nn.Module, purpose: Purpose) -> Iterator[None]:
    """Context manager: count the rows that ``module`` sends under ``purpose``."""
    before = [(m, m.purpose) for m in counted_modules(module)]
    for m, _ in before:
        m.purpose = purpose
    try:
        yield
    finally:
        for m, previous in before:
            m.purpose = previous


@contextmanager
def inferring_shapes(module: nn.Module) -> Iterator[None]:
    """Context manager: ``module`` sends no rows; see `CountedModule.infer_shapes`."""
    before = [(m, m.infer_shapes) for m in counted_modules(module)]
    for m, _ in before:
        m.infer_shapes = True
    try:
        yield
    finally:
        for m, previous in before:
            m.infer_shapes = previous
