"""What a device's answers give away about faults in front of it or behind it: said once, as a warning."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from bpfree._errors import DeviceError
from bpfree.physics.system import Array

#: Rows that a running device is judged by, and the most that are looked at.
FEW, MANY = 64, 1024
#: Consecutive equal answers that are remarked upon.
STUCK = 256
#: Share of the driving values out of range that is remarked upon.
CLIPPED = 0.1
#: A continuous output stands at its largest or smallest value in no such share of the rows, ...
_RAIL = 0.25
#: ... and an output of few levels, but more than two, in no such share; ...
_NEARLY_ALL = 0.9
#: ... where this many different values make it continuous.
_LEVELS = 16
#: Sizes of integers, in bits, that converters and their drivers use.
_BITS = (8, 10, 12, 14, 16, 24, 32, 64)
#: How close to both ends of an integer's range its values must come, as a share of that range.
_MARGIN = 0.02


class Inspection:
    """Watches the rows that pass a device, and warns once about each kind of fault."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._seen: list[tuple[Array, Array]] | None = []
        self._rows = self._values = self._clipped = 0
        self._last: tuple[Array, Array] | None = None
        self._equal, self._driven = 0, False

    def driven(self, u: Array, clipped: int, input_range: tuple[float, float]) -> None:
        """Count drives, and how many of their values were out of range."""
        self._rows, self._values, self._clipped = (
            self._rows + len(u),
            self._values + u.size,
            self._clipped + clipped,
        )
        if self._rows >= FEW and self._clipped >= CLIPPED * self._values:
            self._warn(
                clipped=f"{self._clipped / self._values:.0%} of the driving values were outside the device's "
                f"range {input_range} and were clipped; scale them, as physical_net(drive='minmax') does",
            )

    def see(self, u: Array, y: Array, rows: int) -> None:
        """Look at answers ``y [B, n_out]`` to the drives ``u``, asked for ``rows`` at a time.

        Raises:
            DeviceError: If the first rows were all answered alike, or all rows of each call.
        """
        if self._seen is None:
            self._watch(u, y)
            return
        for k in range(0, min(len(u), MANY), rows):
            self._seen.append((u[k : k + rows].copy(), y[k : k + rows].copy()))
        if sum(len(part) for part, _ in self._seen) < FEW:
            return
        calls, self._seen = self._seen, []
        drives, answers = (np.concatenate(parts) for parts in zip(*calls, strict=True))
        if np.all(drives == drives[0]):
            return
        self._seen = None
        several = [(part, answer) for part, answer in calls if not np.all(part == part[0])]
        if several and all(np.all(answer == answer[0]) for _, answer in several):
            raise _same(*several[0])
        self.examine(drives, answers, u.dtype)

    def _watch(self, u: Array, y: Array) -> None:
        """Count answers in a row that are equal, although their drives differ."""
        if len(y) == 0:
            return
        drive, answer = self._last or (u[0].copy(), y[0].copy())
        if not (np.array_equal(y[-1], answer) and np.all(y == answer)):
            self._last, self._equal, self._driven = (u[-1].copy(), y[-1].copy()), 1, False
            return
        self._last = (drive, answer)
        self._equal, self._driven = self._equal + len(y), self._driven or not np.all(u == drive)
        if self._equal >= STUCK and self._driven:
            self._warn(
                stuck=f"the device's last {self._equal} answers are all the same, although its drives "
                "differ; is it still switched on, and read anew for each row?",
            )

    def examine(self, u: Array, y: Array, dtype: Any) -> None:
        """Warn about outputs that never change, that are at a rail, or that may have overflowed.

        Args:
            u: Different drives ``[B, n_in]``.
            y: Their answers ``[B, n_out]``.
            dtype: What the answers will be used in.

        Raises:
            DeviceError: If all rows were answered alike.
        """
        u, y = u[:MANY], y[:MANY]
        constant = np.all(y == y[0], axis=0)
        if constant.all():
            raise _same(u, y)
        found = {}
        if constant.any():
            found["constant"] = (
                f"{named(constant)} never changed in {len(y)} rows; not connected, or saturated?"
            )
        found |= self._ranges(y, ~constant)
        if np.dtype(dtype) == np.float32:
            size, spread = np.abs(y).max(axis=0), np.ptp(y, axis=0)
            # Less than 64 steps of float32 lie in what the output varies by.
            lost = ~constant & (spread < 64 * np.finfo(np.float32).eps * size)
            if lost.any():
                found["float32"] = (
                    f"{named(lost)} vary by less than {np.max(spread[lost] / size[lost]):.1g} of their size, "
                    "which is lost in float32; have the device take off a constant offset"
                )
        self._warn(**found)

    def _ranges(self, y: Array, varies: Array) -> dict[str, str]:
        """What the values say of outputs that vary, by kind of fault."""
        found = {}
        low, high = y.min(axis=0), y.max(axis=0)
        levels = 1 + np.count_nonzero(np.diff(np.sort(y, axis=0), axis=0), axis=0)
        at_high, at_low = np.mean(y == high, axis=0), np.mean(y == low, axis=0)
        share = np.maximum(at_high, at_low)
        rail = varies & (((share >= _RAIL) & (levels >= _LEVELS)) | (share >= _NEARLY_ALL) & (levels > 2))
        if rail.any():
            k = int(np.argmax(np.where(rail, share, 0)))
            end, value = ("largest", high[k]) if at_high[k] >= at_low[k] else ("smallest", low[k])
            found["rail"] = (
                f"{named(rail)} stood at one end of the range in at least "
                f"{share[rail].min():.0%} of {len(y)} rows (output {k} at its {end} value {value:.4g} in "
                f"{share[k]:.0%}): saturated? lower the drive or the gain"
            )
        overflowed = varies & (levels >= _LEVELS) & np.all(y == np.round(y), axis=0)
        overflowed &= _fills_an_integer(low, high) | (at_high * len(y) >= 2) & _is_end(high)
        if overflowed.any():
            found["integer"] = (
                f"{named(overflowed)} are whole numbers that reach the end of an integer's range "
                f"({low[overflowed].min():.0f} to {high[overflowed].max():.0f}); what was beyond it has been "
                "cut off or has wrapped around: lower the gain, or return a wider type"
            )
        return found

    def undriven(self, y: Array, noise: Array, repeated: int) -> None:
        """Warn if outputs hardly differ more from drive to drive than when one drive is sent again.

        Args:
            y: Answers to different drives, ``[B, n_out]``.
            noise: Standard deviation of the answers to one drive, ``[n_out]``.
            repeated: Degrees of freedom of ``noise``.
        """
        variance = y.var(axis=0, ddof=1)
        varies = variance > 0
        if np.any(noise[varies] == 0):
            return
        ratio = variance[varies] / np.square(noise[varies])
        # The standard deviation of this ratio where there is noise alone.
        chance = np.sqrt(2 / (len(y) - 1) + 2 / repeated)
        if ratio.mean() < 1 + chance and ratio.max() < 1 + 4 * chance:
            self._warn(
                undriven="the device's answers to different drives differ hardly more than its answers to "
                "one drive that is sent again; does the drive reach it?",
            )

    def _warn(self, **found: str) -> None:
        """Warn of the faults ``found``, by kind, of which nothing was said before: one warning for all."""
        new = [message for kind, message in found.items() if kind not in self._said]
        self._said.update(found)
        if new:
            warnings.warn(". ".join(new), stacklevel=2)


def _same(u: Array, y: Array) -> DeviceError:
    values = f"all {y[0, 0]:.4g}" if np.all(y[0] == y[0, 0]) else f"{y[0, 0]:.4g}, {y[0, -1]:.4g} at its ends"
    return DeviceError(
        f"the device gave one answer to {len(u)} rows ({values}), although their drives differ; is it "
        "switched on and connected, and read anew for each row?",
        retryable=False,
    )


def named(which: Array) -> str:
    """The outputs for which ``which [n_out]`` is true, as the subject of a sentence."""
    found = np.flatnonzero(which).tolist()
    listed = ", ".join(str(k) for k in found[:6]) + (", ..." if len(found) > 6 else "")
    return f"{len(found)} of {len(which)} outputs ({listed})"


def _fills_an_integer(low: Array, high: Array) -> Array:
    """Whether the values reach nearly to both ends of a signed or unsigned integer's range."""
    fills = np.zeros(low.shape, bool)
    for bits in _BITS:
        for start in (0, -(2 ** (bits - 1))):
            end, margin = start + 2**bits - 1, _MARGIN * 2**bits
            fills |= (low >= start) & (low <= start + margin) & (high <= end) & (high >= end - margin)
    return fills


def _is_end(high: Array) -> Array:
    """Whether the largest value is the largest that an integer can hold."""
    return np.isin(high, [2.0 ** (bits - signed) - 1 for bits in _BITS for signed in (0, 1)])
