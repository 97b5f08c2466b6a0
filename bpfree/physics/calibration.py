"""Statistics of a device's outputs: offset, scale, noise and nonlinearity."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Self

import numpy as np

from bpfree._errors import BadValue
from bpfree._renamed import warn_renamed
from bpfree._seeds import derive
from bpfree.physics.diagnostics import nonlinearity_index
from bpfree.physics.state import StateDict
from bpfree.physics.system import Array

#: Distance between the 5th and the 95th percentile of a normal distribution, in standard deviations.
_SPREAD = 2 * 1.6448536269514722

#: Names of fields in states of version 0.1.
_OLD_FIELDS = {"reference_answer": "reference_output", "at": "time"}


@dataclass(frozen=True)
class CalibrationReport:
    """Result of `Device.calibrate`.

    Attributes:
        offset: Median of each output, ``[n_out]``.
        scale: Spread of each output, ``[n_out]``: the distance between its 5th and 95th percentile, divided
            by that of a standard normal distribution. Outliers do not change it.
        noise: Standard deviation of repeated outputs for one drive, ``[n_out]``.
        nonlinearity_index: 1 - R^2 of a held-out linear fit; None with fewer than two probes per
            coefficient, or if the outputs do not depend on the drive.
        reference: The drives that `Device.drift_report` sends again, ``[R, n_in]``.
        reference_output: Mean outputs for these drives at calibration, ``[R, n_out]``.
        rows: Number of rows that the calibration sent.
        time: Wall-clock time of the calibration, in seconds since the epoch.
    """

    offset: Array
    scale: Array
    noise: Array
    nonlinearity_index: float | None
    reference: Array = field(repr=False)
    reference_output: Array = field(repr=False)
    rows: int
    time: float

    def standardize(self, y: Array) -> Array:
        """Return ``(y - offset) / scale``, with the noise in place of a scale that is smaller than the noise.

        The result is 0 for an output that did not vary at calibration.
        """
        scale = np.maximum(self.scale, self.noise)
        varies = scale > 0
        scaled: Array = np.where(varies, (y - self.offset) / np.where(varies, scale, 1), 0)
        return scaled.astype(np.result_type(y.dtype, np.float32), copy=False)

    def standardise(self, y: Array) -> Array:
        """Old name of `standardize`."""
        warn_renamed("CalibrationReport.standardise", "CalibrationReport.standardize")
        return self.standardize(y)

    def state_dict(self) -> StateDict:
        """Return the fields as a dict of arrays and numbers."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: StateDict) -> Self:
        """Return the report of a `state_dict`, also of version 0.1."""
        return cls(**{_OLD_FIELDS.get(name, name): value for name, value in state.items()})


def probes(n: int, n_in: int, input_range: tuple[float, float], seed: int) -> Array:
    """Return ``n`` random drives, uniform in the input range: ``[n, n_in]`` in float64."""
    rng = np.random.Generator(np.random.Philox(derive(seed, "probes")))
    low, high = input_range
    return low + (high - low) * rng.random((n, n_in))


def repeats(n: int) -> tuple[int, int]:
    """Return how many of ``n`` probes are reference drives, and how many more times each of them is sent."""
    return max(2, min(32, n // 8)), 4


def summarize(u: Array, y: Array, repeated: Array, time: float) -> CalibrationReport:
    """Return the report for outputs ``y`` of drives ``u``.

    Args:
        u: Drives ``[N, n_in]``. The first R are the reference drives.
        y: Outputs ``[N, n_out]``.
        repeated: Further outputs for the reference drives, ``[r, R, n_out]``.
        time: See `CalibrationReport`.

    Raises:
        BadValue: If there are fewer than 8 probes.
    """
    if len(u) < 8:
        raise BadValue(f"n = {len(u)}: expected at least 8 probes")
    count = repeated.shape[1]
    low, high = np.percentile(y, [5, 95], axis=0)
    same_drive = np.concatenate([y[None, :count], repeated])
    enough = len(u) >= 2 * (u.shape[1] + 1)
    index = nonlinearity_index(u, y) if enough and np.any(high > low) else None
    return CalibrationReport(
        offset=np.median(y, axis=0),
        scale=(high - low) / _SPREAD,
        noise=np.sqrt(same_drive.var(axis=0, ddof=1).mean(axis=0)),
        nonlinearity_index=index,
        reference=u[:count],
        reference_output=same_drive.mean(axis=0),
        rows=len(u) + repeated.shape[0] * count,
        time=time,
    )


def correlation(a: Array, b: Array) -> float | None:
    """Return the Pearson correlation of outputs ``a`` and ``b``, both ``[R, n_out]``, for the same drives.

    Each output is centered and weighted by its variance. Returns None if nothing varies.
    """
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    norm = float(np.sqrt(np.square(a).sum() * np.square(b).sum()))
    return float((a * b).sum()) / norm if norm > 0 else None
