"""What a run would have cost on hardware, by figures that a config states of it: a model, no measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge

from bpfree._settings import STRICT

Figure = Annotated[float, Ge(0)] | None


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Times and energies of a device and of the computer beside it; what is not stated is not modelled.

    Attributes:
        pass_s: Seconds that one row takes on the device.
        pass_j: Joules that one row takes on the device.
        flop_j: Joules of a FLOP of the computer.
        bit_j: Joules of a bit that a converter makes; needs ``drive_bits`` and ``answer_bits``.
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
        """Names of what is needed beside what is stated."""
        bits = {"drive_bits": self.drive_bits, "answer_bits": self.answer_bits}
        return [name for name, value in bits.items() if self.bit_j is not None and value is None]


def modelled(
    profile: Profile, devices: Sequence[Any], passes: Mapping[str, int], flops: float
) -> dict[str, Any]:
    """Hardware time and energy of a training, validation on the way left out.

    One row is sent after the other, whichever layer it is of.

    Args:
        profile: What is stated.
        devices: One for each layer, None where there is none; all of one kind.
        passes: Rows sent, by purpose; those of training and of calibration count.
        flops: FLOPs of the training.

    Returns:
        ``time_s``, ``energy_j`` and its parts, each if it follows from the profile.
    """
    rows = passes.get("train", 0) + passes.get("calibration", 0)
    device = next((d for d in devices if d is not None), None)
    found: dict[str, Any] = {"basis": "modelled from the stated profile, not measured"}
    if profile.pass_s is not None:
        found["time_s"] = rows * profile.pass_s
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
        found |= {"parts": parts, "energy_j": sum(parts.values())}
    return found
