"""What a device's answers look like: offset, scale, noise, nonlinearity; and whether they still do."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from bpfree._errors import BadValue
from bpfree._seeds import derive
from bpfree.physics.diagnostics import nonlinearity_index
from bpfree.physics.system import Array

#: The 5th and the 95th percentile of a normal distribution lie this many standard deviations apart.
_SPREAD = 2 * 1.6448536269514722


@dataclass(frozen=True)
class CalibrationReport:
    """What probing a device found.

    Attributes:
        offset: Median answer of each output, ``[n_out]``.
        scale: Spread of each output, ``[n_out]``: the distance between its 5th and 95th percentile, in the
            units in which that of a normal distribution is its standard deviation. Outliers do not move it.
        noise: Standard deviation of repeated answers to one drive, ``[n_out]``.
        nonlinearity_index: 1 - R^2 of a held-out linear fit; None with fewer than two probes per
            coefficient, and for a device that does not answer to its drive.
        reference: The drives that `Device.drift_report` sends again, ``[R, n_in]``.
        reference_answer: Their answers then, ``[R, n_out]``.
        rows: Rows that the calibration cost.
        at: Wall-clock time, in seconds since the epoch.
    """

    offset: Array
    scale: Array
    noise: Array
    nonlinearity_index: float | None
    reference: Array = field(repr=False)
    reference_answer: Array = field(repr=False)
    rows: int
    at: float

    def standardise(self, y: Array) -> Array:
        """``(y - offset) / scale``; an output that varies less than its noise is divided by the noise.

        An output that never varied comes out as 0, whatever it does later.
        """
        scale = np.maximum(self.scale, self.noise)
        live = scale > 0
        scaled: Array = np.where(live, (y - self.offset) / np.where(live, scale, 1), 0)
        return scaled.astype(np.result_type(y.dtype, np.float32), copy=False)

    def state_dict(self) -> dict[str, Any]:
        """The fields, as arrays and numbers."""
        return asdict(self)


def probes(n: int, n_in: int, input_range: tuple[float, float], seed: int) -> Array:
    """``n`` drives, uniform on the input range, ``[n, n_in]`` in float64."""
    rng = np.random.Generator(np.random.Philox(derive(seed, "probes")))
    low, high = input_range
    return low + (high - low) * rng.random((n, n_in))


def repeats(n: int) -> tuple[int, int]:
    """How many of ``n`` probes are reference drives, and how often each of those is sent again."""
    return max(2, min(32, n // 8)), 4


def summarise(u: Array, y: Array, again: Array, at: float) -> CalibrationReport:
    """The report on answers ``y`` to drives ``u``, whose first R rows were answered ``again [r, R, n_out]``.

    Raises:
        BadValue: If there are fewer than 8 probes.
    """
    if len(u) < 8:
        raise BadValue(f"n = {len(u)}: expected at least 8 probes")
    count = again.shape[1]
    low, high = np.percentile(y, [5, 95], axis=0)
    same = np.concatenate([y[None, :count], again])
    enough = len(u) >= 2 * (u.shape[1] + 1)
    index = nonlinearity_index(u, y) if enough and np.any(high > low) else None
    return CalibrationReport(
        offset=np.median(y, axis=0),
        scale=(high - low) / _SPREAD,
        noise=np.sqrt(same.var(axis=0, ddof=1).mean(axis=0)),
        nonlinearity_index=index,
        reference=u[:count],
        reference_answer=same.mean(axis=0),
        rows=len(u) + again.shape[0] * count,
        at=at,
    )


def correlation(a: Array, b: Array) -> float | None:
    """Pearson correlation of two answers ``[R, n_out]`` to the same drives, over all outputs that vary.

    Each output is centred and weighs by its variance; None where nothing varies.
    """
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    norm = float(np.sqrt(np.square(a).sum() * np.square(b).sum()))
    return float((a * b).sum()) / norm if norm > 0 else None
