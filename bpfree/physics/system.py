"""What a physical device is to bpfree: numpy in, numpy out, and nothing else is known of it."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from bpfree._errors import DeviceError

__all__ = ["Array", "DeviceError", "PhysicalSystem"]

#: A floating point array, float32 or float64.
Array = NDArray[Any]


@runtime_checkable
class PhysicalSystem(Protocol):
    """A device that answers drives. There is no base class: whatever has these four members is one.

    Attributes:
        n_in: Values in one drive.
        n_out: Values in one answer.
        input_range: (lowest, highest) value that the device can be driven with, in its own unit.

    A system may also have any of the following; `bpfree.physics.Device` finds them by name:

    ``kind: str``
        How tables name it: "simulated", "recorded" or "surrogate"; "device" where it says nothing.
    ``time_s: float``, ``advance(seconds)``
        A clock of its own, for simulated devices: let time pass, and with it drift.
    ``frozen()``
        A context manager: noise and drift are off inside.
    ``state_dict()``, ``load_state_dict(state)``
        What a resumed run needs to go on as the uninterrupted one: random state, drift. A dict of numpy
        arrays and whatever JSON can hold.
    ``energy_j: float``
        Joules used so far, where it is measured.
    ``report()``
        A dict of JSON values about what happened so far, for tables.
    ``close()``
        Let go of the hardware.
    """

    n_in: int
    n_out: int
    input_range: tuple[float, float]

    def forward(self, u: Array) -> Array:
        """Drive the device once per row; blocks until all rows are answered. The answer may be noisy.

        Args:
            u: Drives ``[B, n_in]``, inside `input_range`, float32 or float64, C-contiguous.

        Returns:
            Answers ``[B, n_out]``, one row for each drive: a numpy array of real, finite numbers of any dtype
            and layout. A complex answer is returned as real channels, such as its real and imaginary parts.

        Raises:
            DeviceError: If the device fails; ``retryable`` says whether to ask again. Other exceptions count
                as failures too, and errors of the program, such as TypeError, as ones that will not pass.
        """
        ...
