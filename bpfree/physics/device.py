"""`Device`: calls a physical system, counts and clips its rows, and retries failed calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from torch import Tensor

from bpfree._errors import BadValue, DeviceError, Diverged
from bpfree.physics.calibration import CalibrationReport, correlation, probes, repeats, summarize
from bpfree.physics.inspection import Inspection
from bpfree.physics.outputs import checked_forward
from bpfree.physics.state import Report, StateDict
from bpfree.physics.system import Array, PhysicalSystem

#: What rows are sent for.
Purpose = Literal["train", "eval", "calibration", "other"]
PURPOSES: tuple[Purpose, ...] = ("train", "eval", "calibration", "other")


class Device:
    """A `PhysicalSystem` as trainers use it. Autograd cannot differentiate it.

    Each row whose output is computed is a pass. Passes are counted by purpose, see `counters`; the default
    purpose is "other". Rows of a failed call are not passes; they are counted in `retried_rows`. Drives
    outside the input range are clipped, and the clipped values are counted.

    A failed call is repeated. If it keeps failing, it is split in halves, down to single rows, so that only
    the rows that fail are sent again. The system receives a copy of the drives, and its output is copied.

    Each of the following is warned about once: many clipped values; outputs that never change, are often at
    one end of their range, reach the end of an integer's range, or vary by less than the resolution of
    float32; outputs that no longer change; and, at calibration, outputs that do not depend on the drive.

    Args:
        system: Any `PhysicalSystem`.
        retries: Number of times a call, or a single row, is repeated after a retryable failure. With 0, calls
            are neither repeated nor split.
        pause_s: Seconds to wait before the first retry; the wait doubles before each further one.
        max_rows: Maximum number of rows in one call of the system. Larger batches are split into several
            calls.

    Attributes:
        n_in, n_out, input_range, kind: Those of the system.
        passes: Number of passes, by purpose.
        clipped_values, clipped_rows: Number of drive values out of range, and of rows with such a value.
        retried_rows, retries_used: Number of rows that were sent again, and of repeated calls.
        calls: Number of successful calls of the system.
        wall_time_s: Seconds spent in the system, including failed calls.
        calibration: The last `CalibrationReport`, or None.

    Raises:
        BadValue: If the system lacks a member of the protocol, its input range is empty, or an argument is
            out of range.
    """

    def __init__(
        self, system: PhysicalSystem, *, retries: int = 5, pause_s: float = 0.0, max_rows: int | None = None
    ) -> None:
        missing = [name for name in ("n_in", "n_out", "input_range", "forward") if not hasattr(system, name)]
        if missing:
            raise BadValue(
                f"{type(system).__name__} is not a PhysicalSystem: it has no {', '.join(missing)}; "
                "expected n_in, n_out, input_range and forward(u)"
            )
        low, high = _bounds(system.input_range)
        for name in ("n_in", "n_out"):
            if not _is_count(getattr(system, name)):
                raise BadValue(f"{name} = {getattr(system, name)!r}: expected a whole number of at least 1")
        if retries < 0 or pause_s < 0 or (max_rows is not None and max_rows < 1):
            raise BadValue(
                f"retries = {retries}, pause_s = {pause_s}, max_rows = {max_rows}: expected retries and "
                "pause_s of at least 0, and max_rows of at least 1 or None"
            )
        self.system, self.retries, self.pause_s, self.max_rows = system, retries, pause_s, max_rows
        self.n_in, self.n_out, self.input_range = int(system.n_in), int(system.n_out), (low, high)
        self.kind: str = getattr(system, "kind", "device")
        self.passes: dict[str, int] = dict.fromkeys(PURPOSES, 0)
        self.clipped_values = self.clipped_rows = 0
        self.retried_rows = self.retries_used = self.calls = 0
        self.wall_time_s = 0.0
        self.calibration: CalibrationReport | None = None
        self._purpose: Purpose = "other"
        self._inspection = Inspection()

    @contextmanager
    def counters(self, purpose: Purpose) -> Iterator[None]:
        """Context manager: count the passes inside under ``purpose``. The innermost purpose applies.

        Raises:
            BadValue: If ``purpose`` is not in `PURPOSES`.
        """
        if purpose not in PURPOSES:
            raise BadValue(f"counters({purpose!r}): expected one of {', '.join(PURPOSES)}")
        outer, self._purpose = self._purpose, purpose
        try:
            yield
        finally:
            self._purpose = outer

    def forward(self, u: Array) -> Array:
        """Compute the outputs ``[B, n_out]`` for the drives ``u [B, n_in]``, in the dtype of ``u``.

        Raises:
            BadValue: If ``u`` is a tensor, or has another shape or dtype.
            Diverged: If ``u`` contains NaN or infinity.
            DeviceError: If the system still fails after all retries, if its output is not an array
                ``[B, n_out]`` of real, finite numbers, or if the first rows all have the same output.
        """
        u = self._check_drive(u)
        y = self.forward_unchecked(u)
        self._inspection.add_outputs(u, y, self.max_rows or max(1, len(u)))
        return y.astype(u.dtype, copy=False)

    def forward_unchecked(self, u: Array) -> Array:
        """`forward` for drives inside the range, without the checks for hardware faults.

        The outputs are in float32 if the system returns float32, else in float64.
        """
        step = self.max_rows or max(1, len(u))
        parts = [self._call(u[k : k + step], k, len(u), 1 + self.retries) for k in range(0, len(u), step)]
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty((0, self.n_out), u.dtype), *parts])

    def measure(self, u: Tensor) -> Tensor:
        """`forward` for tensors: ``[B, n_in]`` to ``[B, n_out]`` on the same torch device, without a graph.

        Drives in half precision are converted to float32, and so are their outputs.

        Raises:
            BadValue: If ``u`` requires grad: a physical device has no gradient.
        """
        if u.requires_grad:
            raise BadValue("the drive requires grad, and a physical device has no gradient; detach the drive")
        drive = u.float() if u.dtype in (torch.float16, torch.bfloat16) else u
        return torch.from_numpy(self.forward(drive.cpu().numpy())).to(u.device)

    def _check_drive(self, u: object) -> Array:
        """Check the drives, count and clip values out of range, and return an array ``[B, n_in]``."""
        if isinstance(u, Tensor):
            raise BadValue(
                "the drive is a tensor; Device.forward expects a numpy array: use Device.measure for tensors"
            )
        if np.ma.is_masked(u):
            count = int(np.ma.getmaskarray(np.ma.asarray(u)).sum())
            raise BadValue(f"{count} values of the drive are masked; replace them with u.filled(value)")
        u = cast(Array, np.asarray(u))
        if u.ndim != 2 or u.shape[1] != self.n_in or u.dtype not in (np.float32, np.float64):
            raise BadValue(
                f"the drive is {u.dtype} {list(u.shape)}; expected float32 or float64 [B, {self.n_in}]"
            )
        (low, high), clipped = self.input_range, 0
        # False for NaN and infinity too.
        if u.size and not low <= u.min() <= u.max() <= high:
            if not np.isfinite(u).all():
                raise Diverged(f"{np.sum(~np.isfinite(u))} values of the drive are NaN or infinite")
            outside = (u < low) | (u > high)
            clipped = int(outside.sum())
            self.clipped_values += clipped
            self.clipped_rows += int(outside.any(axis=1).sum())
            u = np.clip(u, low, high)
        self._inspection.add_drives(u, clipped, self.input_range)
        return np.ascontiguousarray(u)

    def _call(self, u: Array, first: int, total: int, attempts: int) -> Array:
        """Return the outputs of the rows ``u``, the rows from number ``first`` of a batch of ``total``.

        They are sent in one call, at most ``attempts`` times, and then in halves.
        """
        failure: DeviceError | None = None
        for attempt in range(attempts):
            if failure is not None:
                self._count_retry(u)
                time.sleep(self.pause_s * 2 ** (attempt - 1))
            started = time.perf_counter()
            try:
                y = checked_forward(self.system, u)
            except DeviceError as error:
                if not error.retryable or self.retries == 0:
                    raise
                failure = error
            else:
                self.calls += 1
                self.passes[self._purpose] += len(u)
                return y
            finally:
                self.wall_time_s += time.perf_counter() - started
        if len(u) == 1:
            raise DeviceError(
                f"row {first} of {total} failed in {attempts} attempts to send it alone: {failure}",
                retryable=False,
            ) from failure
        self._count_retry(u)
        half = len(u) // 2
        parts = ((u[:half], first), (u[half:], first + half))
        return np.concatenate(
            [self._call(part, k, total, 1 if len(part) > 1 else 1 + self.retries) for part, k in parts]
        )

    def _count_retry(self, u: Array) -> None:
        self.retried_rows += len(u)
        self.retries_used += 1

    def calibrate(self, n: int = 256, *, seed: int = 0, drives: Array | None = None) -> CalibrationReport:
        """Measure offset, scale, noise and nonlinearity of the outputs, and save them as `calibration`.

        Args:
            n: Number of probes, uniform in the input range. Up to 32 of them are sent four more times.
            seed: Seed of the probes.
            drives: Drives ``[n, n_in]`` to use as probes, such as a sample of the drives in training: a
                device may respond differently there than on average over its input range.

        Raises:
            BadValue: If there are fewer than 8 probes, or they are all the same.
            DeviceError: As in `forward`, or if all probes have the same output.
        """
        u = probes(n, self.n_in, self.input_range, seed) if drives is None else self._check_drive(drives)
        if len(u) < 8:
            raise BadValue(f"{len(u)} probes; expected at least 8")
        if np.all(u == u[0]):
            raise BadValue(
                f"the {len(u)} drives for calibration are all the same after clipping to {self.input_range}; "
                "expected different ones"
            )
        count, times = repeats(len(u))
        with self.counters("calibration"):
            y = self.forward(u)
            repeated = np.stack([self.forward(u[:count]) for _ in range(times)])
        self._inspection.check_outputs(u, y, y.dtype)
        self.calibration = summarize(u, y, repeated, time.time())
        self._inspection.check_noise(y, self.calibration.noise, times * count)
        return self.calibration

    def drift_report(self) -> dict[str, float | int | None]:
        """Send the reference drives again, and compare their outputs with those at calibration.

        Returns:
            ``correlation`` with the outputs at calibration (None if they do not vary), ``age_s`` of the
            calibration in seconds, and the number of ``rows`` sent. With noise, the correlation is below 1
            without any drift.

        Raises:
            BadValue: If the device was never calibrated.
        """
        if self.calibration is None:
            raise BadValue("the device was never calibrated; call calibrate() first")
        reference = self.calibration.reference
        with self.counters("calibration"):
            y = self.forward(reference)
        return {
            "correlation": correlation(self.calibration.reference_output, y),
            "age_s": time.time() - self.calibration.time,
            "rows": len(reference),
        }

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass in a simulated system.

        Raises:
            BadValue: If the system has no method ``advance``.
        """
        self._method("advance")(seconds)

    def frozen(self) -> AbstractContextManager[None]:
        """Context manager: no noise and no drift inside.

        Raises:
            BadValue: If the system has no method ``frozen``.
        """
        context: AbstractContextManager[None] = self._method("frozen")()
        return context

    def _method(self, name: str) -> Callable[..., Any]:
        method: Callable[..., Any] | None = getattr(self.system, name, None)
        if method is None:
            raise BadValue(
                f"{type(self.system).__name__} has no method {name}(); simulated systems have it, and it is "
                "optional for others"
            )
        return method

    def report(self) -> Report:
        """Return all counts and the report of the system, as JSON values."""
        values: Report = {
            "kind": self.kind,
            "passes": dict(self.passes),
            "calls": self.calls,
            "clipped_values": self.clipped_values,
            "clipped_rows": self.clipped_rows,
            "retries_used": self.retries_used,
            "retried_rows": self.retried_rows,
            "wall_time_s": self.wall_time_s,
        }
        energy = getattr(self.system, "energy_j", None)
        if energy is not None:
            values["energy_j"] = energy
        system_report = getattr(self.system, "report", None)
        return values | (system_report() if system_report is not None else {})

    def state_dict(self) -> StateDict:
        """Return counts, calibration and the state of the system, as arrays and JSON values."""
        system_state = getattr(self.system, "state_dict", None)
        return {
            "counts": {name: getattr(self, name) for name in _COUNTS} | {"passes": dict(self.passes)},
            "calibration": self.calibration.state_dict() if self.calibration else None,
            "system": system_state() if system_state is not None else None,
        }

    def load_state_dict(self, state: StateDict) -> None:
        """Restore a `state_dict`.

        Raises:
            BadValue: If it contains the state of a system and this system has no method ``load_state_dict``.
        """
        for name in _COUNTS:
            setattr(self, name, state["counts"][name])
        self.passes = dict(state["counts"]["passes"])
        self.calibration = (
            CalibrationReport.from_state(state["calibration"]) if state["calibration"] else None
        )
        if state["system"] is not None:
            self._method("load_state_dict")(state["system"])

    def close(self) -> None:
        """Close the system, if it has a method ``close``."""
        close = getattr(self.system, "close", None)
        if close is not None:
            close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _bounds(input_range: tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = (float(bound) for bound in input_range)
    except (TypeError, ValueError):
        low, high = np.nan, np.nan
    if not -np.inf < low < high < np.inf:
        raise BadValue(f"input_range = {input_range!r}: expected two numbers (low, high), finite, low < high")
    return low, high


def _is_count(n: object) -> bool:
    return isinstance(n, int | float | np.number) and float(n) >= 1 and float(n).is_integer()


_COUNTS = ("calls", "clipped_values", "clipped_rows", "retries_used", "retried_rows", "wall_time_s")
