"""`Device`: the counted, retried, clipped way to a physical system; autograd cannot pass it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from bpfree._errors import BadValue, DeviceError, Diverged
from bpfree.physics.answers import checked_forward
from bpfree.physics.calibration import CalibrationReport, correlation, probes, repeats, summarise
from bpfree.physics.inspection import Inspection
from bpfree.physics.system import Array, PhysicalSystem

Purpose = Literal["train", "eval", "calibration", "other"]
PURPOSES: tuple[Purpose, ...] = ("train", "eval", "calibration", "other")


class Device:
    """A `PhysicalSystem` as trainers use it.

    Every row answered is counted under the purpose of the surrounding `counters` window; outside any window
    it is "other". Rows of a failed call are not answered: they stand in `retried_rows`. Drives outside the
    input range are clipped, and the clipped values counted.

    A call that fails is sent again, and if it keeps failing it is split in halves, down to single rows, so
    that rows which fail now and then cost only themselves. The system gets a copy of the drives, and its
    answer is copied.

    Warns once about each of: many clipped values; outputs that never change, stand at one end of their
    range, reach the end of an integer's range, or vary by less than float32 resolves; answers that stay the
    same from some row on; and, at calibration, answers that do not depend on the drive.

    Args:
        system: Any `PhysicalSystem`.
        retries: How often a call, or a single row, is sent again after a retryable failure; 0: never, and
            calls are not split.
        pause_s: Seconds to wait before the first retry; twice as long before each further one.
        max_rows: Most rows in one call of the system; longer batches are sent in pieces, each retried alone.

    Attributes:
        n_in, n_out, input_range, kind: The system's own.
        passes: Rows answered, by purpose.
        clipped_values, clipped_rows: Driving values that were out of range, and rows that held one.
        retried_rows, retries_used: What failed and was sent again.
        calls: Answered calls of the system.
        wall_time_s: Seconds spent inside the system, failed calls included.
        calibration: The last `CalibrationReport`, or None.

    Raises:
        BadValue: If the system lacks a member of the protocol, or its range is empty.
    """

    def __init__(
        self, system: PhysicalSystem, *, retries: int = 5, pause_s: float = 0.0, max_rows: int | None = None
    ) -> None:
        missing = [name for name in ("n_in", "n_out", "input_range", "forward") if not hasattr(system, name)]
        if missing:
            raise BadValue(
                f"{type(system).__name__} is no PhysicalSystem: it has no {', '.join(missing)}; "
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
        """Count what passes inside under ``purpose``; the innermost window counts.

        Raises:
            BadValue: For a purpose that is none of `PURPOSES`.
        """
        if purpose not in PURPOSES:
            raise BadValue(f"counters({purpose!r}): expected one of {', '.join(PURPOSES)}")
        outer, self._purpose = self._purpose, purpose
        try:
            yield
        finally:
            self._purpose = outer

    def forward(self, u: Array) -> Array:
        """Answers ``[B, n_out]`` to the drives ``u [B, n_in]``, in the floating dtype of ``u``.

        Raises:
            BadValue: If ``u`` is a tensor, or has another shape or dtype.
            Diverged: If ``u`` holds NaN or infinity.
            DeviceError: If the system failed for good, or its answer is no array ``[B, n_out]`` of real,
                finite numbers; or if all of the first rows had the same answer.
        """
        u = self._drive(u)
        y = self.answers(u)
        self._inspection.see(u, y, self.max_rows or max(1, len(u)))
        return y.astype(u.dtype, copy=False)

    def answers(self, u: Array) -> Array:
        """`forward` for drives inside the range, in float64 unless the system answers in float32.

        They are not looked at for signs of a fault.
        """
        step = self.max_rows or max(1, len(u))
        pieces = [self._answered(u[k : k + step], k, len(u)) for k in range(0, len(u), step)]
        return (
            pieces[0] if len(pieces) == 1 else np.concatenate([np.empty((0, self.n_out), u.dtype), *pieces])
        )

    def measure(self, u: Tensor) -> Tensor:
        """`forward` for tensors: ``[B, n_in]`` to ``[B, n_out]`` on the same torch device, a constant.

        Drives in half precision are sent, and answered, in float32.

        Raises:
            BadValue: If ``u`` requires grad: no gradient may enter a device.
        """
        if u.requires_grad:
            raise BadValue(
                "the drive requires grad, and a physical device has no gradient; detach it at the wall"
            )
        drive = u.float() if u.dtype in (torch.float16, torch.bfloat16) else u
        return torch.from_numpy(self.forward(drive.cpu().numpy())).to(u.device)

    def _drive(self, u: Any) -> Array:
        if isinstance(u, Tensor):
            raise BadValue(
                "the drive is a tensor; a device takes numpy arrays, use Device.measure for constant tensors"
            )
        if np.ma.is_masked(u):
            count = int(np.ma.getmaskarray(u).sum())
            raise BadValue(f"{count} values of the drive are masked; put numbers there, by u.filled(value)")
        u = np.asarray(u)
        if u.ndim != 2 or u.shape[1] != self.n_in or u.dtype not in (np.float32, np.float64):
            raise BadValue(
                f"the drive is {u.dtype} {list(u.shape)}; expected float32 or float64 [B, {self.n_in}]"
            )
        if not np.isfinite(u).all():
            raise Diverged(f"{np.sum(~np.isfinite(u))} values of the drive are NaN or infinite")
        low, high = self.input_range
        outside = (u < low) | (u > high)
        self._inspection.driven(u, int(outside.sum()), self.input_range)
        if outside.any():
            self.clipped_values += int(outside.sum())
            self.clipped_rows += int(outside.any(axis=1).sum())
            u = np.clip(u, low, high)
        return np.ascontiguousarray(u)

    def _answered(self, u: Array, first: int, total: int, attempts: int | None = None) -> Array:
        """Answers to the rows ``u`` of ``total``, beginning with row ``first``.

        They are sent together, ``attempts`` times at most, and then in halves.
        """
        attempts = attempts or 1 + self.retries
        try:
            return self._sent(u, attempts)
        except DeviceError as error:
            if not error.retryable or self.retries == 0:
                raise
            if len(u) == 1:
                tries = f"{attempts} attempts to send it alone"
                raise DeviceError(
                    f"row {first} of {total} was not answered in {tries}: {error}", retryable=False
                ) from error
        self._count_resent(u)
        half = len(u) // 2
        parts = ((u[:half], first), (u[half:], first + half))
        return np.concatenate(
            [self._answered(part, k, total, 1 if len(part) > 1 else None) for part, k in parts]
        )

    def _sent(self, u: Array, attempts: int) -> Array:
        """One call of the system, sent again while it fails in a way that may pass."""
        for attempt in range(attempts):
            try:
                y = self._timed(u)
            except DeviceError as error:
                if not error.retryable or attempt == attempts - 1:
                    raise
                self._count_resent(u)
                time.sleep(self.pause_s * 2**attempt)
            else:
                self.calls += 1
                self.passes[self._purpose] += len(u)
                return y
        raise AssertionError("the last attempt returns or raises")

    def _count_resent(self, u: Array) -> None:
        self.retried_rows += len(u)
        self.retries_used += 1

    def _timed(self, u: Array) -> Array:
        started = time.perf_counter()
        try:
            return checked_forward(self.system, u)
        finally:
            self.wall_time_s += time.perf_counter() - started

    def calibrate(self, n: int = 256, *, seed: int = 0, drives: Array | None = None) -> CalibrationReport:
        """Probe the device, and keep what it answers as `calibration`.

        Args:
            n: Number of probes, uniform on the input range. Up to 32 of them are sent four times more.
            seed: Which probes.
            drives: Drives ``[n, n_in]`` to probe with instead, such as a sample of what training will send:
                a device can behave otherwise where training drives it than on average over its range.

        Raises:
            BadValue: With fewer than 8 probes, or if all of them are the same.
            DeviceError: As `forward`, and if all probes have the same answer.
        """
        u = probes(n, self.n_in, self.input_range, seed) if drives is None else self._drive(drives)
        if len(u) < 8:
            raise BadValue(f"{len(u)} probes; expected at least 8")
        if np.all(u == u[0]):
            raise BadValue(
                f"the {len(u)} drives to calibrate with are all the same inside the range "
                f"{self.input_range}; expected different ones"
            )
        count, times = repeats(len(u))
        with self.counters("calibration"):
            y = self.forward(u)
            again = np.stack([self.forward(u[:count]) for _ in range(times)])
        self._inspection.examine(u, y, y.dtype)
        self.calibration = summarise(u, y, again, time.time())
        self._inspection.undriven(y, self.calibration.noise, times * count)
        return self.calibration

    def drift_report(self) -> dict[str, float | int | None]:
        """Send the reference drives again, and compare with what they answered at calibration.

        Returns:
            ``correlation`` with the first answers (None if they do not vary), ``age_s`` of the calibration,
            and the ``rows`` it cost. The correlation of noisy answers is below 1 without any drift.

        Raises:
            BadValue: If the device was never calibrated.
        """
        if self.calibration is None:
            raise BadValue("the device was never calibrated; call calibrate() first")
        reference = self.calibration.reference
        with self.counters("calibration"):
            y = self.forward(reference)
        return {
            "correlation": correlation(self.calibration.reference_answer, y),
            "age_s": time.time() - self.calibration.at,
            "rows": len(reference),
        }

    def advance(self, seconds: float) -> None:
        """Let time pass for a simulated device.

        Raises:
            BadValue: If the system has no clock that could be advanced.
        """
        self._offered("advance")(seconds)

    def frozen(self) -> AbstractContextManager[None]:
        """A window without noise and drift.

        Raises:
            BadValue: If the system cannot be frozen: only simulated ones can.
        """
        window: AbstractContextManager[None] = self._offered("frozen")()
        return window

    def _offered(self, name: str) -> Callable[..., Any]:
        method = getattr(self.system, name, None)
        if method is None:
            raise BadValue(
                f"{type(self.system).__name__} has no {name}(); simulated systems have, real ones need not"
            )
        return method  # type: ignore[no-any-return]

    def report(self) -> dict[str, Any]:
        """All counts, and what the system itself reports, as JSON values for tables and logs."""
        figures: dict[str, Any] = {
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
            figures["energy_j"] = energy
        own = getattr(self.system, "report", None)
        return figures | (own() if own is not None else {})

    def state_dict(self) -> dict[str, Any]:
        """Counts, calibration, and the system's own state where it offers one; arrays and JSON values."""
        own = getattr(self.system, "state_dict", None)
        return {
            "counts": {name: getattr(self, name) for name in _COUNTS} | {"passes": dict(self.passes)},
            "calibration": self.calibration.state_dict() if self.calibration else None,
            "system": own() if own is not None else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` took.

        Raises:
            BadValue: If the state holds a system's state and this system takes none.
        """
        for name in _COUNTS:
            setattr(self, name, state["counts"][name])
        self.passes = dict(state["counts"]["passes"])
        self.calibration = CalibrationReport(**state["calibration"]) if state["calibration"] else None
        if state["system"] is not None:
            self._offered("load_state_dict")(state["system"])

    def close(self) -> None:
        """Let the system go, where it has something to let go."""
        close = getattr(self.system, "close", None)
        if close is not None:
            close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _bounds(input_range: Any) -> tuple[float, float]:
    try:
        low, high = (float(bound) for bound in input_range)
    except (TypeError, ValueError):
        low, high = np.nan, np.nan
    if not -np.inf < low < high < np.inf:
        raise BadValue(f"input_range = {input_range!r}: expected two numbers (low, high), finite, low < high")
    return low, high


def _is_count(n: Any) -> bool:
    return isinstance(n, int | float | np.number) and float(n) >= 1 and float(n).is_integer()


_COUNTS = ("calls", "clipped_values", "clipped_rows", "retries_used", "retried_rows", "wall_time_s")
