"""The interface of a physical system: numpy arrays in, numpy arrays out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import nn

from bpfree._errors import DeviceError
from bpfree._renamed import warn_renamed

__all__ = ["Array", "DeviceError", "PhysicalSystem", "find_digital_model"]

#: A floating point array, float32 or float64.
Array: TypeAlias = NDArray[np.floating]


@runtime_checkable
class PhysicalSystem(Protocol):
    """A physical system that computes an output for each drive. Any class with these four members is one.

    Attributes:
        n_in: Number of values in a drive.
        n_out: Number of values in an output.
        input_range: ``(low, high)``, the lowest and highest value of a drive, in the unit of the system.

    A system may also have the following members, which `bpfree.physics.Device` uses if they are there:

    ``kind: str``
        Name of its kind in tables: "simulated", "recorded" or "surrogate"; "device" if it is missing.
    ``time_s: float``, ``advance(seconds)``
        Simulated time in seconds, and a method that lets time pass, during which the system may drift.
    ``frozen()``
        A context manager inside which there is no noise and no drift.
    ``state_dict()``, ``load_state_dict(state)``
        The state that a resumed run needs, such as the state of random number generators: a dict of numpy
        arrays and JSON values.
    ``digital_model(mismatch, seed)``
        A differentiable module of the system, see `bpfree.physics.Simulated.digital_model`.
    ``energy_j: float``
        Energy used so far in joules, if it is measured.
    ``report()``
        A dict of JSON values for tables.
    ``close()``
        Releases the hardware.
    """

    n_in: int
    n_out: int
    input_range: tuple[float, float]

    def forward(self, u: Array) -> Array:
        """Compute the output for each row of ``u``. It may contain noise. Blocks until all rows are computed.

        Args:
            u: Drives ``[B, n_in]``, inside `input_range`, float32 or float64, C-contiguous.

        Returns:
            Outputs ``[B, n_out]``, one row for each drive: a numpy array of real, finite numbers of any dtype
            and memory layout. A system with complex outputs returns real channels, such as real and imaginary
            parts.

        Raises:
            DeviceError: If the system fails. ``retryable`` says whether the call may succeed if it is
                repeated. Other exceptions count as failures too; programming errors, such as TypeError, are
                not retried.
        """
        ...


def find_digital_model(system: object) -> Callable[[float, int], nn.Module] | None:
    """Return the method ``digital_model(mismatch, seed)`` of ``system``, or None.

    A method with the old name ``differentiable_twin`` is accepted for one release.
    """
    method: Callable[[float, int], nn.Module] | None = getattr(system, "digital_model", None)
    if method is None:
        method = getattr(system, "differentiable_twin", None)
        if method is not None:
            warn_renamed(f"{type(system).__name__}.differentiable_twin", "digital_model")
    return method
