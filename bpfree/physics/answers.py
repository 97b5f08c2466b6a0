"""What counts as a device's answer: one set of rules, in this process and in another."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import numpy as np

from bpfree._errors import BpfreeError, DeviceError
from bpfree.physics.system import Array, PhysicalSystem

#: SCPI instruments send 9.91e37 for "not a number" and +-9.9e37 for an overload. No reading in a usual unit
#: comes near this limit, and such a code stays above it where a driver has changed its unit.
LARGEST = 1e30

#: Errors of the program, not of the instrument: sending the drive again will not help.
_MISTAKES = (
    TypeError,
    NameError,
    AttributeError,
    LookupError,
    ImportError,
    AssertionError,
    NotImplementedError,
)


def checked_forward(system: PhysicalSystem, u: Array) -> Array:
    """Drive a system once per row, and check what it answers.

    The system is handed a copy of the drives, and its answer is copied: it may write into the one, and use
    the memory of the other again.

    Args:
        system: Any system.
        u: Drives ``[B, n_in]``.

    Returns:
        Answers ``[B, n_out]``, float32 where the system answered in float32 and otherwise float64.

    Raises:
        DeviceError: If the system raised any exception, or as `checked_answer`.
    """
    try:
        y = system.forward(u.copy())
    except BpfreeError:
        raise
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        raise DeviceError(
            f"the device raised {type(error).__name__}: {error} ({Path(at.filename).name}, line {at.lineno})",
            retryable=not isinstance(error, _MISTAKES),
        ) from error
    return checked_answer(y, len(u), int(system.n_out))


def checked_answer(y: Any, rows: int, n_out: int) -> Array:
    """A copy of the answer ``y``, float32 where ``y`` is and otherwise float64.

    Raises:
        DeviceError: If ``y`` is not an array ``[rows, n_out]`` of real numbers (not retryable), or values are
            NaN, infinite, masked, or too large to be a reading.
    """
    wrong = _wrong_kind(y, rows, n_out)
    if wrong:
        raise DeviceError(f"the device answered {wrong}", retryable=False)
    with np.errstate(over="ignore"):  # what overflows becomes infinite, and is refused below
        values: Array = np.array(y, np.float32 if y.dtype == np.float32 else np.float64, order="C")
    missing = _missing(values, np.ma.getmask(y))
    if missing:
        raise DeviceError(f"{missing} in the device's answer")
    return values


def numbers(values: Any, name: str) -> Array:
    """Measured values as a new array, float32 where they are and otherwise float64.

    Raises:
        ValueError: If they are not real numbers, or some are NaN, infinite, masked or too large.
    """
    array = np.asanyarray(values)
    wrong = _wrong_dtype(array.dtype)
    if wrong:
        raise ValueError(f"{name} is an array of {wrong}")
    copied: Array = np.array(array, np.float32 if array.dtype == np.float32 else np.float64)
    missing = _missing(copied, np.ma.getmask(array))
    if missing:
        raise ValueError(f"{name}: {missing}")
    return copied


def _wrong_kind(y: Any, rows: int, n_out: int) -> str | None:
    if not isinstance(y, np.ndarray):
        fix = ".detach().cpu().numpy()" if hasattr(y, "detach") else "np.asarray(...)"
        return f"a {type(y).__name__}; expected a numpy array [{rows}, {n_out}]: return {fix}"
    wrong = _wrong_dtype(y.dtype)
    if wrong:
        return f"an array of {wrong}"
    if y.shape != (rows, n_out):
        return f"{list(y.shape)} to {rows} rows; expected [{rows}, {n_out}]"
    return None


def _wrong_dtype(dtype: np.dtype[Any]) -> str | None:
    if dtype.kind == "c":
        return (
            f"{dtype}; expected real numbers: return real channels, such as "
            "np.concatenate([y.real, y.imag], axis=1) with n_out to match, or np.abs(y)"
        )
    if dtype.kind not in "fiub":
        return f"dtype {dtype}; expected real numbers: convert with .astype(np.float64)"
    return None


def _missing(values: Array, mask: Any) -> str | None:
    if mask is not np.ma.nomask and mask.any():
        return f"{int(mask.sum())} values are masked"
    good = np.abs(values) < LARGEST  # false for NaN
    if good.all():
        return None
    if np.isfinite(values).all():
        worst = float(np.abs(values).max())
        return (
            f"{int((~good).sum())} values are as large as {worst:.4g}, with which instruments say that there "
            "is no reading (9.91e37) or that they are overloaded (9.9e37)"
        )
    return f"{int((~np.isfinite(values)).sum())} values are NaN or infinite"
