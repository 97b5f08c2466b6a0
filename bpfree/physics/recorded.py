"""Record the drives and outputs of a physical system, and replay them."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import ClassVar

import numpy as np

from bpfree._errors import BadValue, DeviceError
from bpfree.physics.outputs import checked_forward, finite_array
from bpfree.physics.state import StateDict
from bpfree.physics.system import Array, PhysicalSystem


class Recorder:
    """Records the drives and outputs of all calls of a system.

    Args:
        system: Any system.
    """

    def __init__(self, system: PhysicalSystem) -> None:
        self.system = system
        self.n_in, self.n_out, self.input_range = system.n_in, system.n_out, system.input_range
        self.kind: str = getattr(system, "kind", "device")
        self._calls: list[tuple[Array, Array]] = []

    def forward(self, u: Array) -> Array:
        """Compute the outputs and record the call, unless it raises or its outputs are invalid."""
        y = checked_forward(self.system, u)
        self._calls.append((u.copy(), y.copy()))
        return y

    def save(self, path: str | Path) -> None:
        """Write the record as ``.npz``. The file is replaced atomically.

        Raises:
            BadValue: If no call was recorded.
        """
        if not self._calls:
            raise BadValue(f"no call was recorded, so {path} is not written; call forward first")
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
        """Close the system, if it has a method ``close``."""
        if hasattr(self.system, "close"):
            self.system.close()


class Replay:
    """Returns recorded outputs, in the order of the calls, and only for the recorded drives.

    Args:
        path: A file written by `Recorder.save`.

    Raises:
        BadValue: If the file does not exist or is not a record.
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
        """Return the recorded outputs of the next call, or of several consecutive calls with these drives.

        Raises:
            DeviceError: If the record has ended, or its next call has other drives (not retryable).
        """
        if self._next >= len(self._calls):
            raise DeviceError(f"the record ends after {len(self._calls)} calls", retryable=False)
        end, rows = self._next + 1, len(self._calls[self._next][0])
        while rows < len(u) and end < len(self._calls):
            rows, end = rows + len(self._calls[end][0]), end + 1
        drive, output = (np.concatenate(parts) for parts in zip(*self._calls[self._next : end], strict=True))
        if not np.array_equal(u, drive):
            difference = (
                f"{list(u.shape)}, not {list(drive.shape)}" if u.shape != drive.shape else "other values"
            )
            raise DeviceError(
                f"call {self._next} was recorded with another drive: {difference}", retryable=False
            )
        self._next = end
        return output

    def state_dict(self) -> StateDict:
        """Return the index of the next call."""
        return {"next": self._next}

    def load_state_dict(self, state: StateDict) -> None:
        """Restore a `state_dict`."""
        self._next = state["next"]


def _read(path: str | Path) -> tuple[Array, Array, list[int], Array]:
    """Return the drives, the outputs, the number of rows of each call, and the input range."""
    try:
        with open(path, "rb") as file, np.load(file) as record:
            u, y, rows, bounds = (record[name] for name in ("u", "y", "rows", "input_range"))
        y = finite_array(y, "y")
        consistent = u.ndim == y.ndim == 2 and len(u) == len(y) == rows.sum() and bounds.shape == (2,)
        if not consistent or rows.dtype.kind not in "iu" or rows.min() < 0:
            raise ValueError("its arrays have inconsistent shapes")
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise BadValue(f"{path} is not a record of a device ({error}); Recorder.save writes one") from None
    return u, y, rows.tolist(), bounds
