"""A record returns the outputs of the device, in the same order, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bpfree._errors import BadValue, DeviceError
from bpfree.physics import AcousticCavity, Device, Recorder, Replay
from tests.physics.systems import Doubler, drives


def test_a_noisy_device_is_replayed_bit_for_bit(tmp_path: Path) -> None:
    recorder = Recorder(AcousticCavity(noise=0.1))
    u = drives(recorder, 6)
    sent = [u, u, u[:1], u[2:5].astype(np.float32)]
    outputs = [recorder.forward(drive) for drive in sent]
    assert not np.array_equal(outputs[0], outputs[1]), "two noisy outputs for one drive"
    recorder.save(tmp_path / "cavity.npz")
    replay = Replay(tmp_path / "cavity.npz")
    assert (replay.n_in, replay.n_out, replay.input_range, replay.kind) == (20, 20, (0.0, 1.0), "recorded")
    for drive, output in zip(sent, outputs, strict=True):
        np.testing.assert_array_equal(replay.forward(drive), output)
    with pytest.raises(DeviceError, match="ends after 4"):
        replay.forward(u)


def test_another_drive_is_refused_and_not_retried(tmp_path: Path) -> None:
    recorder = Recorder(Doubler())
    u = drives(recorder, 4)
    recorder.forward(u)
    recorder.save(tmp_path / "r.npz")
    for other, why in ((u + 1e-12, "other values"), (u[:3], r"\[3, 3\]")):
        with pytest.raises(DeviceError, match=why) as failure:
            Device(Replay(tmp_path / "r.npz")).forward(other)
        assert not failure.value.retryable
    replay = Replay(tmp_path / "r.npz")
    with pytest.raises(DeviceError):
        replay.forward(u + 1)
    np.testing.assert_array_equal(replay.forward(u), Doubler().forward(u))  # the refused call is not skipped


def test_a_resumed_replay_continues_at_the_same_call(tmp_path: Path) -> None:
    recorder = Recorder(Doubler())
    parts = np.split(drives(recorder, 6), 3)
    for part in parts:
        recorder.forward(part)
    recorder.save(tmp_path / "r.npz")
    first, second = (Device(Replay(tmp_path / "r.npz")) for _ in range(2))
    first.forward(parts[0])
    second.load_state_dict(first.state_dict())
    np.testing.assert_array_equal(second.forward(parts[1]), Doubler().forward(parts[1]))


def test_failed_calls_are_not_recorded(tmp_path: Path) -> None:
    class Once(Doubler):
        failed = False

        def forward(self, u: np.ndarray) -> np.ndarray:
            if not self.failed:
                self.failed = True
                raise DeviceError("dropped frame")
            return super().forward(u)

    recorder = Recorder(Once())
    u = drives(recorder, 2)
    Device(recorder).forward(u)
    recorder.save(tmp_path / "r.npz")
    Replay(tmp_path / "r.npz").forward(u)


def test_invalid_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadValue, match="no call was recorded"):
        Recorder(Doubler()).save(tmp_path / "r.npz")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "text.npz").write_text("no record")
    np.savez(tmp_path / "other.npz", x=1)
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "broken.npz").write_bytes((tmp_path / "other.npz").read_bytes()[:60])
    np.save(tmp_path / "array.npz.npy", np.zeros(3))
    for name in ("missing.npz", "text.npz", "other.npz", "empty.npz", "broken.npz", "array.npz.npy"):
        with pytest.raises(BadValue, match=name):
            Replay(tmp_path / name)


@pytest.mark.parametrize(
    "changed",
    [
        {"u": np.zeros(4)},
        {"y": np.zeros((4, 6), complex)},
        {"y": np.full((4, 6), np.nan)},
        {"y": np.zeros((3, 6))},
        {"rows": np.array([3])},
        {"rows": np.array([5, -1])},
        {"rows": np.array([4.0])},
        {"input_range": np.array(1.0)},
    ],
)
def test_records_with_inconsistent_arrays_are_refused(changed: dict[str, Any], tmp_path: Path) -> None:
    whole = {"u": np.zeros((4, 3)), "y": np.zeros((4, 6)), "rows": [4], "input_range": [-1.0, 1.0]}
    np.savez(tmp_path / "r.npz", **whole)  # type: ignore[arg-type]
    Replay(tmp_path / "r.npz").forward(np.zeros((4, 3)))
    np.savez(tmp_path / "r.npz", **(whole | changed))
    with pytest.raises(BadValue, match="not a record of a device"):
        Replay(tmp_path / "r.npz")
