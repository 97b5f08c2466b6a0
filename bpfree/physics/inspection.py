"""Checks of drives and outputs for signs of a hardware fault; each kind of fault is warned about once."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import DTypeLike, NDArray

from bpfree._errors import DeviceError
from bpfree.physics.system import Array

Mask = NDArray[np.bool_]

#: Number of first rows that are checked together, and the largest number of rows that are checked.
FEW, MANY = 64, 1024
#: Number of consecutive equal outputs that is warned about.
STUCK = 256
#: Share of drive values out of range that is warned about.
CLIPPED = 0.1
#: Share of rows at the largest or smallest value that is warned about: for a continuous output, ...
_RAIL = 0.25
#: ... and for an output with few levels, but more than two.
_NEARLY_ALL = 0.9
#: Number of different values of a continuous output.
_LEVELS = 16
#: Sizes of the integers, in bits, that converters and their drivers use.
_BITS = (8, 10, 12, 14, 16, 24, 32, 64)
#: Largest distance of the values from both ends of an integer's range, as a share of that range.
_MARGIN = 0.02


class Inspection:
    """Checks the rows of a device, and warns once about each kind of fault."""

    def __init__(self) -> None:
        self._warned: set[str] = set()
        #: The first calls, until they have `FEW` rows and are checked; then None.
        self._first_calls: list[tuple[Array, Array]] | None = []
        self._rows = self._values = self._clipped = 0
        #: The first drive and output of the current run of equal outputs, its length, and whether drives
        #: differ.
        self._last: tuple[Array, Array] | None = None
        self._equal, self._drives_differ = 0, False

    def add_drives(self, u: Array, clipped: int, input_range: tuple[float, float]) -> None:
        """Count drives ``u [B, n_in]``, of which ``clipped`` values were out of range."""
        self._rows, self._values, self._clipped = (
            self._rows + len(u),
            self._values + u.size,
            self._clipped + clipped,
        )
        if self._rows >= FEW and self._clipped >= CLIPPED * self._values:
            self._warn(
                clipped=f"{self._clipped / self._values:.0%} of the drive values were outside the input "
                f"range {input_range} of the device and were clipped; scale them, as with "
                "physical_net(drive='minmax')",
            )

    def add_outputs(self, u: Array, y: Array, rows: int) -> None:
        """Check outputs ``y [B, n_out]`` for drives ``u``, computed in calls of ``rows`` rows.

        Raises:
            DeviceError: If the first rows all have the same output, or all rows within each call.
        """
        if self._first_calls is not None:
            self._add_first(self._first_calls, u, y, rows)
            return
        if len(y) == 0:
            return
        # Count consecutive outputs that are equal although their drives differ.
        drive, output = self._last or (u[0].copy(), y[0].copy())
        if not (np.array_equal(y[-1], output) and np.all(y == output)):
            self._last, self._equal, self._drives_differ = (u[-1].copy(), y[-1].copy()), 1, False
            return
        self._last = (drive, output)
        self._equal += len(y)
        self._drives_differ = self._drives_differ or not np.all(u == drive)
        if self._equal >= STUCK and self._drives_differ:
            self._warn(
                stuck=f"the last {self._equal} outputs of the device are all the same, although the drives "
                "differ; is it still switched on, and is a new value read for each row?",
            )

    def _add_first(self, calls: list[tuple[Array, Array]], u: Array, y: Array, rows: int) -> None:
        """Add to the first ``calls``, and check them once they have enough rows."""
        for k in range(0, min(len(u), MANY), rows):
            calls.append((u[k : k + rows].copy(), y[k : k + rows].copy()))
        if sum(len(part) for part, _ in calls) < FEW:
            return
        self._first_calls = []
        drives, outputs = (np.concatenate(parts) for parts in zip(*calls, strict=True))
        if np.all(drives == drives[0]):
            return
        self._first_calls = None
        varied = [(part, output) for part, output in calls if not np.all(part == part[0])]
        if varied and all(np.all(output == output[0]) for _, output in varied):
            raise _constant_output(*varied[0])
        self.check_outputs(drives, outputs, u.dtype)

    def check_outputs(self, u: Array, y: Array, dtype: DTypeLike) -> None:
        """Warn about outputs that never change, are saturated, may have overflowed, or exceed the precision.

        Args:
            u: Different drives ``[B, n_in]``.
            y: Their outputs ``[B, n_out]``.
            dtype: The dtype in which the outputs will be used.

        Raises:
            DeviceError: If all rows have the same output.
        """
        u, y = u[:MANY], y[:MANY]
        constant = np.all(y == y[0], axis=0)
        if constant.all():
            raise _constant_output(u, y)
        faults = {}
        if constant.any():
            faults["constant"] = (
                f"{name_outputs(constant)} never changed in {len(y)} rows; not connected, or saturated?"
            )
        faults |= self._range_faults(y, ~constant)
        if np.dtype(dtype) == np.float32:
            size, spread = np.abs(y).max(axis=0), np.ptp(y, axis=0)
            # The output varies by less than 64 steps of float32.
            lost = ~constant & (spread < 64 * np.finfo(np.float32).eps * size)
            if lost.any():
                faults["float32"] = (
                    f"{name_outputs(lost)} vary by less than "
                    f"{np.max(spread[lost] / size[lost]):.1g} of their size, "
                    "which is lost in float32; have the device subtract a constant offset"
                )
        self._warn(**faults)

    def _range_faults(self, y: Array, varies: Mask) -> dict[str, str]:
        """Return messages about outputs that are saturated or may have overflowed, by kind of fault."""
        faults = {}
        low, high = y.min(axis=0), y.max(axis=0)
        levels = 1 + np.count_nonzero(np.diff(np.sort(y, axis=0), axis=0), axis=0)
        at_high, at_low = np.mean(y == high, axis=0), np.mean(y == low, axis=0)
        share = np.maximum(at_high, at_low)
        rail = varies & (((share >= _RAIL) & (levels >= _LEVELS)) | (share >= _NEARLY_ALL) & (levels > 2))
        if rail.any():
            k = int(np.argmax(np.where(rail, share, 0)))
            end, value = ("largest", high[k]) if at_high[k] >= at_low[k] else ("smallest", low[k])
            faults["rail"] = (
                f"{name_outputs(rail)} were at one end of their range in at least "
                f"{share[rail].min():.0%} of {len(y)} rows (output {k} at its {end} value {value:.4g} in "
                f"{share[k]:.0%}): saturated? lower the drive or the gain"
            )
        overflowed = varies & (levels >= _LEVELS) & np.all(y == np.round(y), axis=0)
        overflowed &= _fills_integer_range(low, high) | (at_high * len(y) >= 2) & _is_integer_max(high)
        if overflowed.any():
            faults["integer"] = (
                f"{name_outputs(overflowed)} are whole numbers that reach the end of an integer's range "
                f"({low[overflowed].min():.0f} to {high[overflowed].max():.0f}); larger values were "
                "clipped or have wrapped around: lower the gain, or return a wider type"
            )
        return faults

    def check_noise(self, y: Array, noise: Array, repeated: int) -> None:
        """Warn if the outputs vary between drives hardly more than between repetitions of one drive.

        Args:
            y: Outputs for different drives, ``[B, n_out]``.
            noise: Standard deviation of the outputs for one drive, ``[n_out]``.
            repeated: Degrees of freedom of ``noise``.
        """
        variance = y.var(axis=0, ddof=1)
        varies = variance > 0
        if np.any(noise[varies] == 0):
            return
        ratio = variance[varies] / np.square(noise[varies])
        # The standard deviation of this ratio if there is only noise.
        chance = np.sqrt(2 / (len(y) - 1) + 2 / repeated)
        if ratio.mean() < 1 + chance and ratio.max() < 1 + 4 * chance:
            self._warn(
                undriven="the outputs of the device differ between drives hardly more than between "
                "repetitions of one drive; does the drive reach it?",
            )

    def _warn(self, **faults: str) -> None:
        """Emit one warning for the ``faults``, by kind, that were not warned about before."""
        new = [message for kind, message in faults.items() if kind not in self._warned]
        self._warned.update(faults)
        if new:
            warnings.warn(". ".join(new), stacklevel=2)


def _constant_output(u: Array, y: Array) -> DeviceError:
    values = f"all {y[0, 0]:.4g}" if np.all(y[0] == y[0, 0]) else f"{y[0, 0]:.4g}, {y[0, -1]:.4g} at its ends"
    return DeviceError(
        f"the device returned the same output for {len(u)} rows ({values}), although their drives differ; is "
        "it switched on and connected, and is a new value read for each row?",
        retryable=False,
    )


def name_outputs(mask: Mask) -> str:
    """Return the outputs for which ``mask [n_out]`` is true, as text: ``"2 of 4 outputs (0, 3)"``."""
    indices = np.flatnonzero(mask).tolist()
    listed = ", ".join(str(k) for k in indices[:6]) + (", ..." if len(indices) > 6 else "")
    return f"{len(indices)} of {len(mask)} outputs ({listed})"


def _fills_integer_range(low: Array, high: Array) -> Mask:
    """Return whether the values nearly reach both ends of an integer's range, ``[n_out]``."""
    fills = np.zeros(low.shape, bool)
    for bits in _BITS:
        for start in (0, -(2 ** (bits - 1))):
            end, margin = start + 2**bits - 1, _MARGIN * 2**bits
            fills |= (low >= start) & (low <= start + margin) & (high <= end) & (high >= end - margin)
    return fills


def _is_integer_max(high: Array) -> Mask:
    """Return whether the largest value is the largest value of an integer type, ``[n_out]``."""
    return np.isin(high, [2.0 ** (bits - signed) - 1 for bits in _BITS for signed in (0, 1)])
