"""Record what a device answered, and replay it with no physics inside."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bpfree._errors import BadValue, DeviceError
from bpfree.physics.answers import checked_forward, numbers
from bpfree.physics.system import Array, PhysicalSystem


class Recorder:
    """Passes everything on to a system, and keeps each drive and its answer.

    Args:
        system: Any system.
    """

    def __init__(self, system: PhysicalSystem) -> None:
        self.system = system
        self.n_in, self.n_out, self.input_range = system.n_in, system.n_out, system.input_range
        self.kind: str = getattr(system, "kind", "device")
        self._calls: list[tuple[Array, Array]] = []

    def forward(self, u: Array) -> Array:
        """The system's answers; calls that raise, or whose answer is refused, are not recorded."""
        y = checked_forward(self.system, u)
        self._calls.append((u.copy(), y.copy()))
        return y

    def save(self, path: str | Path) -> None:
        """Write the record as ``.npz``, at once: a reader sees the old file or the new one.

        Raises:
            BadValue: If nothing was recorded.
        """
        if not self._calls:
            raise BadValue(f"nothing was recorded; {path} is not written")
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        with open(partial, "wb") as file:
            np.savez_compressed(
                file,
                u=np.concatenate([u for u, _ in self._calls]),
                y=np.concatenate([y for _, y in self._calls]),
                rows=np.array([len(u) for u, _ in self._calls]),
                input_range=np.array(self.input_range, np.float64),
            )
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)

    def close(self) -> None:
        """Close the system."""
        if hasattr(self.system, "close"):
            self.system.close()


class Replay:
    """Answers what was recorded, in the order of the calls, and only to the drives that were recorded.

    Args:
        path: A file written by `Recorder.save`.

    Raises:
        BadValue: If there is no such file, or it is no record.
    """

    kind: ClassVar[str] = "recorded"

    def __init__(self, path: str | Path) -> None:
        u, y, rows, bounds = _read(path)
        self.n_in, self.n_out = u.shape[1], y.shape[1]
        self.input_range = (float(bounds[0]), float(bounds[1]))
        ends = np.cumsum(rows)
        self._calls = [(u[end - n : end], y[end - n : end]) for end, n in zip(ends, rows, strict=True)]
        self._next = 0

    def forward(self, u: Array) -> Array:
        """The recorded answers to the next call, which may have been recorded in parts.

        Raises:
            DeviceError: If the record is at its end, or its next call had other drives. Not retryable.
        """
        if self._next >= len(self._calls):
            raise DeviceError(f"the record ends after {len(self._calls)} calls", retryable=False)
        end, rows = self._next + 1, len(self._calls[self._next][0])
        while rows < len(u) and end < len(self._calls):
            rows, end = rows + len(self._calls[end][0]), end + 1
        drive, answer = (np.concatenate(parts) for parts in zip(*self._calls[self._next : end], strict=True))
        if not np.array_equal(u, drive):
            what = f"{list(u.shape)}, not {list(drive.shape)}" if u.shape != drive.shape else "other values"
            raise DeviceError(f"call {self._next} was recorded with another drive: {what}", retryable=False)
        self._next = end
        return answer

    def state_dict(self) -> dict[str, Any]:
        """How far the record has been replayed."""
        return {"next": self._next}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` took."""
        self._next = state["next"]


def _read(path: str | Path) -> tuple[Array, Array, list[int], Array]:
    """Drives, answers, rows of each call, and the input range."""
    try:
        with open(path, "rb") as file, np.load(file) as record:
            u, y, rows, bounds = (record[name] for name in ("u", "y", "rows", "input_range"))
        y = numbers(y, "y")
        fits = u.ndim == y.ndim == 2 and len(u) == len(y) == rows.sum() and bounds.shape == (2,)
        if not fits or rows.dtype.kind not in "iu" or rows.min() < 0:
            raise ValueError("its arrays do not fit together")
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise BadValue(f"{path}: no record of a device ({error}); Recorder.save writes one") from None
    return u, y, rows.tolist(), bounds
