"""Time and energy of a run on hardware, computed from values in a config: a model, no measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from bpfree._settings import STRICT
from bpfree.bench.results import Row
from bpfree.physics import Device

Figure = Annotated[float, Ge(0)] | None


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Times and energies of a device and of the computer beside it; None: not modeled.

    Attributes:
        pass_s: Seconds of one row on the device.
        pass_j: Joules of one row on the device.
        flop_j: Joules of a FLOP of the computer.
        bit_j: Joules per bit of a converter; needs ``drive_bits`` and ``answer_bits``.
        drive_bits, answer_bits: Bits of a value that is sent, and of one that is read.
    """

    __pydantic_config__ = STRICT

    pass_s: Figure = None
    pass_j: Figure = None
    flop_j: Figure = None
    bit_j: Figure = None
    drive_bits: Annotated[int, Ge(1)] | None = None
    answer_bits: Annotated[int, Ge(1)] | None = None

    def missing(self) -> list[str]:
        """Names of settings that ``bit_j`` needs and that are not given."""
        bits = {"drive_bits": self.drive_bits, "answer_bits": self.answer_bits}
        return [name for name, value in bits.items() if self.bit_j is not None and value is None]


def modeled(
    profile: Profile, devices: Sequence[Device | None], passes: Mapping[str, int], flops: float
) -> Row:
    """Hardware time and energy of a training, without its validation.

    The rows of all layers are sent one after the other.

    Args:
        profile: The stated values.
        devices: One for each layer, None where there is none; all of one kind.
        passes: Rows sent, by purpose; those of training and of calibration count.
        flops: FLOPs of the training.

    Returns:
        ``time_s``, ``energy_j`` and its parts, as far as the profile states them.
    """
    rows = passes.get("train", 0) + passes.get("calibration", 0)
    device = next((d for d in devices if d is not None), None)
    result: Row = {"basis": "modelled from the stated profile, not measured"}
    if profile.pass_s is not None:
        result["time_s"] = rows * profile.pass_s
    parts = {}
    if profile.pass_j is not None:
        parts["passes_j"] = rows * profile.pass_j
    if profile.flop_j is not None:
        parts["flops_j"] = flops * profile.flop_j
    if profile.bit_j is not None:
        assert profile.drive_bits is not None and profile.answer_bits is not None
        bits = 0 if device is None else device.n_in * profile.drive_bits + device.n_out * profile.answer_bits
        parts["converters_j"] = rows * bits * profile.bit_j
    if parts:
        result |= {"parts": parts, "energy_j": sum(parts.values())}
    return result
