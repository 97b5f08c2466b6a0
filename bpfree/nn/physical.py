"""Networks that contain physical devices: each device is a fixed front of a trained linear layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree._renamed import warn_renamed
from bpfree._settings import did_you_mean
from bpfree.nn.device_passes import CountedModule
from bpfree.nn.drives import DRIVES, Drive, Picture
from bpfree.physics.device import Device

Normalization = Literal["none", "l2", "standardize", "calibrated"]


class LeadingZeros(nn.Module):
    """Flattens samples and puts ``n`` zeros in front of the values: empty label slots."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x.flatten(1), (self.n, 0))


class PhysicalFront(CountedModule):
    """A physical device as the fixed front of a layer: ``h [B, in_features]`` to ``[B, out_features]``.

    With p the normalized output of the device for the drive ``drive(h)``, the features are ``[p, h]`` with a
    skip connection and ``p`` without. Without a device (an ablation), the features are ``h`` with a skip
    connection and the normalized ``h`` without.

    Args:
        physical_device: A `bpfree.physics.Device`, or None.
        drive: Module that computes the drives from the inputs.
        in_features: Size of each input.
        skip: Whether the inputs are concatenated to the outputs of the device.
        normalize: ``"none"``; ``"l2"``, scales each row to the length ``sqrt(n_out)``; ``"standardize"``,
            scales each row to mean 0 and variance 1; ``"calibrated"``, subtracts the offset of each output
            and divides by its scale, both measured by `calibrate`.

    Raises:
        BadValue: If ``normalize`` is none of these.
    """

    offset: Tensor
    scale: Tensor

    def __init__(
        self,
        physical_device: Device | None,
        drive: Drive,
        in_features: int,
        skip: bool,
        normalize: Normalization = "none",
    ) -> None:
        super().__init__()
        if normalize not in get_args(Normalization):
            raise BadValue(
                f"normalize = {normalize!r}: unknown; {did_you_mean(normalize, get_args(Normalization))}"
            )
        # In a tuple, so that nn.Module does not register it: a device is not part of the state dict.
        self._physical_device = (physical_device,)
        self.drive, self.in_features, self.skip, self.normalize = drive, in_features, skip, normalize
        self.n_out = in_features if physical_device is None else physical_device.n_out
        self.out_features = in_features if physical_device is None else self.n_out + in_features * skip
        self.register_buffer("offset", torch.zeros(self.n_out))
        self.register_buffer("scale", torch.ones(self.n_out))

    @property
    def physical_device(self) -> Device | None:
        """The device, or None."""
        return self._physical_device[0]

    def forward(self, x: Tensor) -> Tensor:
        if self._physical_device[0] is None:
            return x if self.skip else self.features(x, x)
        return self.features(self.measure(self.drive(x)), x)

    def measure(self, drives: Tensor) -> Tensor:
        """Return the outputs of the device, ``[B, n_out]``, for ``drives [B, n_in]``."""
        (device,) = self._physical_device
        assert device is not None
        if self.infer_shapes:
            # Not zeros: a closed-form solution that is computed from these features must exist.
            row = torch.linspace(-1, 1, self.n_out, device=drives.device, dtype=drives.dtype)
            return row.repeat(len(drives), 1)
        with device.counters(self.purpose):
            return device.measure(drives)

    def features(self, outputs: Tensor, x: Tensor) -> Tensor:
        """Return the features for the inputs ``x`` and the outputs of the device, ``[B, out_features]``."""
        p = outputs
        if self.normalize == "l2":
            p = p * p.shape[1] ** 0.5 / (p.norm(dim=1, keepdim=True) + 1e-12)
        elif self.normalize == "calibrated":
            p = (p - self.offset) / self.scale
        elif self.normalize == "standardize":
            p = (p - p.mean(1, keepdim=True)) / (p.std(1, keepdim=True, correction=0) + 1e-12)
        return torch.cat([p, x], 1) if self.skip else p

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Measure the offset and scale of each output with the drives of ``x [n, in_features]``."""
        assert self.physical_device is not None
        if self.infer_shapes:
            return
        report = self.physical_device.calibrate(drives=self.drive(x).cpu().numpy())
        scale = torch.from_numpy(report.scale).clamp_min(torch.from_numpy(report.noise))
        self.offset.copy_(torch.from_numpy(report.offset))
        # The normalized value of an output that never changed is 0.
        self.scale.copy_(torch.where(scale > 0, scale, torch.inf))

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, n_out={self.n_out}, skip={self.skip}, "
            f"normalize={self.normalize!r}"
        )


def physical_net(
    devices: Sequence[Device | None],
    sample_shape: Sequence[int],
    n_classes: int,
    hidden: Sequence[int],
    drive: str | Sequence[str] = "direct",
    skip: bool = True,
    normalize: Normalization | Literal["standardise"] = "none",
    *,
    normalise: Normalization | Literal["standardise"] | None = None,
) -> nn.Sequential:
    """Build a network: label slots, then a device and a linear layer for each entry of ``devices``.

    The last linear layer is the output layer.

    Args:
        devices: The physical device of each layer. One device may be used several times. None: no device.
        sample_shape: Shape of a sample, without the batch dimension.
        n_classes: Number of classes C; the network has C label slots and C outputs.
        hidden: Widths of the linear layers below the output layer, one fewer than ``devices``.
        drive: Key of `bpfree.nn.drives.DRIVES`, or one key for each layer.
        skip: See `PhysicalFront`.
        normalize: See `PhysicalFront`.
        normalise: Old name of ``normalize``.

    Raises:
        BadValue: If the lengths do not fit, or a drive or normalization is unknown.
    """
    if normalise is not None:
        warn_renamed("physical_net(normalise=...)", "physical_net(normalize=...)")
        normalize = normalise
    if normalize == "standardise":
        warn_renamed("normalize = 'standardise'", "normalize = 'standardize'")
        normalize = "standardize"
    if len(devices) != len(hidden) + 1:
        raise BadValue(f"{len(devices)} devices with hidden = {list(hidden)}: expected one width fewer")
    drives = [drive] * len(devices) if isinstance(drive, str) else list(drive)
    if len(drives) != len(devices):
        raise BadValue(f"drive = {drives}: expected one name, or {len(devices)}")
    gray = len(sample_shape) == 3 and sample_shape[0] == 1
    image = (n_classes, sample_shape[1], sample_shape[2]) if gray else None
    width = n_classes + torch.Size(sample_shape).numel()
    layers: list[nn.Module] = [LeadingZeros(n_classes)]
    for k, (device, name) in enumerate(zip(devices, drives, strict=True)):
        module = _make_drive(name, device, image if k == 0 else None, width)
        front = PhysicalFront(device, module, width, skip, normalize)
        width = [*hidden, n_classes][k]
        layers += [front, nn.Linear(front.out_features, width)]
    return nn.Sequential(*layers)


def _make_drive(name: str, device: Device | None, image: tuple[int, int, int] | None, width: int) -> Drive:
    if name not in DRIVES:
        raise BadValue(f"drive = {name!r}: unknown; {did_you_mean(name, DRIVES)}")
    if device is None:
        return Drive(width, (0.0, 1.0))
    if name == "picture":
        return Picture(device.n_in, device.input_range, image)
    return DRIVES[name](device.n_in, device.input_range)
