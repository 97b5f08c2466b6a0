"""Networks with physical devices inside: opaque fronts between trainable matrices."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree._settings import did_you_mean
from bpfree.nn.counted import Counted, Purpose
from bpfree.nn.drives import DRIVES, Drive, Picture

Normalise = Literal["none", "l2", "standardise", "calibrated"]


class Measuring(Protocol):
    """What a front asks of a device; `bpfree.physics.Device` is one."""

    n_in: int
    n_out: int
    input_range: tuple[float, float]
    passes: dict[str, int]
    calibration: Any

    def measure(self, u: Tensor) -> Tensor:
        """Answers ``[B, n_out]`` to constant drives ``[B, n_in]``."""

    def counters(self, purpose: Any) -> AbstractContextManager[None]:
        """A window whose rows are counted under ``purpose``."""

    def calibrate(self, n: int = 256, *, seed: int = 0, drives: Any = None) -> Any:
        """Probe the device; its report stays as ``calibration``."""

    def state_dict(self) -> dict[str, Any]:
        """Counts, calibration, random state."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up such a state."""


class LeadingZeros(nn.Module):
    """Flattens samples and puts ``n`` zeros in front: label slots that are never filled."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x.flatten(1), (self.n, 0))


class PhysicalFront(Counted):
    """A device as the fixed front of a layer: rows ``h [B, d]`` to features ``f [B, n_features]``.

    ``f = [p, h]`` with a skip and ``f = p`` without, where p is the (normalised) answer to the drive that is
    made of h. With no device at all, the ablation, ``f = h``, normalised like an answer if there is no skip.

    Args:
        device: A `bpfree.physics.Device`, or None.
        drive: What makes drives of rows.
        n_rows: Width d of the rows.
        skip: Whether the rows pass by the device as well.
        normalise: ``none``; ``l2``, rows of the length sqrt(n_out); ``standardise``, each row to mean 0 and
            variance 1; ``calibrated``, each output by its offset and scale, as `calibrate` found them.
    """

    offset: Tensor
    scale: Tensor

    def __init__(
        self, device: Measuring | None, drive: Drive, n_rows: int, skip: bool, normalise: Normalise = "none"
    ) -> None:
        super().__init__()
        # In a tuple, which nn.Module does not look into: a device is no part of the state dict.
        self._device = (device,)
        self.drive, self.n_rows, self.skip, self.normalise = drive, n_rows, skip, normalise
        self.n_out = n_rows if device is None else device.n_out
        self.n_features = n_rows if device is None else self.n_out + n_rows * skip
        self.register_buffer("offset", torch.zeros(self.n_out))
        self.register_buffer("scale", torch.ones(self.n_out))

    @property
    def device(self) -> Measuring | None:
        """The device, or None."""
        return self._device[0]

    @property
    def apparatus(self) -> Any:
        return self.device

    def forward(self, rows: Tensor) -> Tensor:
        if self.device is None:
            return rows if self.skip else self.normalised(rows)
        return self.joined(self.measured(self.drive(rows)), rows)

    def measured(self, drives: Tensor) -> Tensor:
        """The device's answers ``[B, n_out]``, counted for the present purpose."""
        assert self.device is not None
        if self.purpose == "shape":
            # Not zeros: what is counted with them, such as a ridge regression, must be solvable.
            row = torch.linspace(-1, 1, self.n_out, device=drives.device, dtype=drives.dtype)
            return row.repeat(len(drives), 1)
        with self.device.counters(self.purpose):
            return self.device.measure(drives)

    def joined(self, answers: Tensor, rows: Tensor) -> Tensor:
        """The features that the layer learns on, of raw answers and of the rows that were sent."""
        answers = self.normalised(answers)
        return torch.cat([answers, rows], 1) if self.skip else answers

    def normalised(self, p: Tensor) -> Tensor:
        """Answers, normalised."""
        if self.normalise == "l2":
            scaled: Tensor = p * p.shape[1] ** 0.5 / (p.norm(dim=1, keepdim=True) + 1e-12)
            return scaled
        if self.normalise == "calibrated":
            return (p - self.offset) / self.scale
        if self.normalise == "standardise":
            deviation: Tensor = p.std(1, keepdim=True, correction=0) + 1e-12
            return (p - p.mean(1, keepdim=True)) / deviation
        return p

    @torch.no_grad()
    def calibrate(self, rows: Tensor) -> None:
        """Probe the device with the drives of ``rows [n, d]``, and keep each output's offset and scale."""
        assert self.device is not None
        if self.purpose == "shape":
            return
        report = self.device.calibrate(drives=self.drive(rows).cpu().numpy())
        scale = torch.from_numpy(report.scale).clamp_min(torch.from_numpy(report.noise))
        self.offset.copy_(torch.from_numpy(report.offset))
        # An output that never varies says nothing, and is not blown up.
        self.scale.copy_(torch.where(scale > 0, scale, torch.inf))

    def extra_repr(self) -> str:
        return f"n_rows={self.n_rows}, n_out={self.n_out}, skip={self.skip}, normalise={self.normalise!r}"


def physical_net(
    devices: Sequence[Measuring | None],
    sample_shape: Sequence[int],
    n_classes: int,
    hidden: Sequence[int],
    drive: str | Sequence[str] = "direct",
    skip: bool = True,
    normalise: Normalise = "none",
) -> nn.Sequential:
    """Label slots, then a device and a matrix in turn; the last matrix is the output layer.

    Args:
        devices: One for each layer; the same one may stand there several times. None is no device.
        sample_shape: Of a sample, without N.
        n_classes: Number of classes C: of label slots, and of outputs.
        hidden: Widths between the devices, one fewer than devices.
        drive: Name of a drive in `DRIVES`, or one for each layer.
        skip: See `PhysicalFront`.
        normalise: See `PhysicalFront`.

    Raises:
        BadValue: If the lengths do not fit, or a drive is unknown.
    """
    if len(devices) != len(hidden) + 1:
        raise BadValue(f"{len(devices)} devices with hidden = {list(hidden)}: expected one width fewer")
    names = [drive] * len(devices) if isinstance(drive, str) else list(drive)
    if len(names) != len(devices):
        raise BadValue(f"drive = {names}: expected one name, or {len(devices)}")
    grey = len(sample_shape) == 3 and sample_shape[0] == 1
    image = (n_classes, sample_shape[1], sample_shape[2]) if grey else None
    width = n_classes + torch.Size(sample_shape).numel()
    layers: list[nn.Module] = [LeadingZeros(n_classes)]
    for k, (device, name) in enumerate(zip(devices, names, strict=True)):
        made = _make_drive(name, device, image if k == 0 else None, width)
        front = PhysicalFront(device, made, width, skip, normalise)
        width = [*hidden, n_classes][k]
        layers += [front, nn.Linear(front.n_features, width)]
    return nn.Sequential(*layers)


def _make_drive(name: str, device: Measuring | None, image: tuple[int, int, int] | None, width: int) -> Drive:
    if name not in DRIVES:
        raise BadValue(f"drive = {name!r}: unknown; {did_you_mean(name, DRIVES)}")
    if device is None:
        return Drive(width, (0.0, 1.0))
    if name == "picture":
        return Picture(device.n_in, device.input_range, image)
    return DRIVES[name](device.n_in, device.input_range)


__all__ = ["LeadingZeros", "Measuring", "Normalise", "PhysicalFront", "Purpose", "physical_net"]
