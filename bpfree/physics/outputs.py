"""Checks of the outputs of physical systems, for systems in this process and in another one."""

from __future__ import annotations

import traceback
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bpfree._errors import BpfreeError, DeviceError
from bpfree.physics.system import Array, PhysicalSystem

#: SCPI instruments send 9.91e37 for "not a number" and +-9.9e37 for an overload. No reading in a usual unit
#: reaches this limit, and these codes exceed it also after a driver has converted their unit.
LARGEST = 1e30

#: Kinds of dtypes of real numbers.
_REAL = "fiub"

#: Programming errors: repeating the call does not help.
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
    """Call ``system.forward`` and check the outputs.

    The system receives a copy of the drives, and its outputs are copied, so it may overwrite both.

    Args:
        system: Any system.
        u: Drives ``[B, n_in]``.

    Returns:
        Outputs ``[B, n_out]``, in float32 if the system returned float32, else in float64.

    Raises:
        DeviceError: If the system raised an exception, or as `checked_output`.
    """
    try:
        y = system.forward(u.copy())
    except BpfreeError:
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise DeviceError(
            f"the device raised {type(error).__name__}: {error} "
            f"({Path(frame.filename).name}, line {frame.lineno})",
            retryable=not isinstance(error, _MISTAKES),
        ) from error
    return checked_output(y, len(u), int(system.n_out))


def checked_output(y: object, rows: int, n_out: int) -> Array:
    """Check the outputs ``y`` and return a copy, in float32 if ``y`` is float32, else in float64.

    Raises:
        DeviceError: If ``y`` is not an array ``[rows, n_out]`` of real numbers (not retryable), or if values
            are NaN, infinite, masked, or too large to be a reading.
    """
    if not isinstance(y, np.ndarray):
        fix = ".detach().cpu().numpy()" if hasattr(y, "detach") else "np.asarray(...)"
        raise DeviceError(
            f"the device returned a {type(y).__name__}; expected a numpy array [{rows}, {n_out}]: "
            f"return {fix}",
            retryable=False,
        )
    if y.dtype.kind not in _REAL:
        raise DeviceError(f"the device returned an array of {_dtype_problem(y.dtype)}", retryable=False)
    if y.shape != (rows, n_out):
        raise DeviceError(
            f"the device returned {list(y.shape)} for {rows} rows; expected [{rows}, {n_out}]",
            retryable=False,
        )
    with np.errstate(over="ignore"):  # values that overflow become infinite, and are refused below
        values: Array = np.array(y, np.float32 if y.dtype == np.float32 else np.float64, order="C")
    # False for NaN too. The smallest and largest value are found in less time than a mask of good values.
    good = values.size == 0 or -LARGEST < values.min() <= values.max() < LARGEST
    if not good or np.ma.is_masked(y):
        raise DeviceError(f"{_value_problem(values, np.ma.getmask(y))} in the output of the device")
    return values


def finite_array(values: object, name: str) -> Array:
    """Return measured values as a new array, in float32 if they are float32, else in float64.

    Raises:
        ValueError: If they are not real numbers, or some are NaN, infinite, masked or too large. The message
            begins with ``name``.
    """
    array = np.asanyarray(values)
    if array.dtype.kind not in _REAL:
        raise ValueError(f"{name} is an array of {_dtype_problem(array.dtype)}")
    copied: Array = np.array(array, np.float32 if array.dtype == np.float32 else np.float64)
    problem = _value_problem(copied, np.ma.getmask(array))
    if problem:
        raise ValueError(f"{name}: {problem}")
    return copied


def _dtype_problem(dtype: np.dtype[np.generic]) -> str:
    if dtype.kind == "c":
        return (
            f"{dtype}; expected real numbers: return real channels, such as "
            "np.concatenate([y.real, y.imag], axis=1) with n_out to match, or np.abs(y)"
        )
    return f"dtype {dtype}; expected real numbers: convert with .astype(np.float64)"


def _value_problem(values: Array, mask: NDArray[np.bool_] | np.bool_) -> str | None:
    if mask.any():
        return f"{int(mask.sum())} values are masked"
    good = np.abs(values) < LARGEST  # false for NaN
    if good.all():
        return None
    if np.isfinite(values).all():
        worst = float(np.abs(values).max())
        return (
            f"{int((~good).sum())} values are as large as {worst:.4g}, a code of instruments for a "
            "missing reading (9.91e37) or an overload (9.9e37)"
        )
    return f"{int((~np.isfinite(values)).sum())} values are NaN or infinite"
