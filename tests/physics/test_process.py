"""A device behind a pipe: the same answers, and every way it can fail."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from bpfree._errors import DeviceError
from bpfree.physics import AcousticCavity, Device, ProcessSystem, serve
from tests.physics.systems import Doubler, drives

# Starting python with torch takes seconds; a device needs neither torch nor bpfree.
BARE = """
import json, struct, sys
inp, out = sys.stdin.buffer, sys.stdout.buffer
def say(header, data=b""):
    out.write(json.dumps(header).encode() + b"\\n" + data); out.flush()
say({"n_in": 3, "n_out": 3, "input_range": [-1, 1], "kind": "bench"})
calls = 0
for line in inp:
    request = json.loads(line); rows = request.get("rows", 0)
    values = struct.unpack(f"<{3 * rows}d", inp.read(24 * rows)); calls += 1
    ANSWER
"""
GOOD = 'say({"ok": True}, struct.pack(f"<{3 * rows}d", *[2 * v for v in values]))'


def command(answer: str, tmp_path: Path) -> list[str]:
    script = tmp_path / "device.py"
    script.write_text(BARE.replace("ANSWER", answer))
    return [sys.executable, "-S", str(script)]


def test_any_program_can_be_a_device(tmp_path: Path) -> None:
    with ProcessSystem(command(GOOD, tmp_path)) as system:
        device = Device(system, max_rows=2)
        u = drives(system, 5)
        np.testing.assert_array_equal(device.forward(u), 2 * u)
        assert device.kind == "bench" and device.calls == 3 and system.starts == 1
        big = drives(system, 50_000)  # more than a pipe holds
        np.testing.assert_array_equal(Device(system).forward(big), 2 * big)
        assert system.forward(u[:0]).shape == (0, 3)


def test_it_answers_as_the_device_in_process_bit_for_bit() -> None:
    code = (
        "from bpfree.physics import AcousticCavity as A, serve\n"
        "class Chatty(A):\n"
        "    def forward(self, u): print('hello'); return super().forward(u)\n"
        "serve(Chatty(seed_device=3))"
    )
    with ProcessSystem([sys.executable, "-c", code]) as there:
        here = AcousticCavity(seed_device=3)
        u = drives(here)
        for _ in range(2):
            np.testing.assert_array_equal(there.forward(u), here.forward(u))
        # Its random state comes over the pipe too.
        state = json.loads(json.dumps(there.state_dict()["device"]["random"]))
        assert state == json.loads(json.dumps(here.state_dict()["random"]))
        before = there.state_dict()
        first = there.forward(u)
        there.load_state_dict(before)
        np.testing.assert_array_equal(there.forward(u), first)
        there.advance(1.0)


def test_a_refusal_is_an_error_with_its_reason_and_the_process_lives(tmp_path: Path) -> None:
    answer = f'{GOOD} if calls > 1 else say({{"ok": False, "error": "lamp off", "retryable": RETRY}})'
    with ProcessSystem(command(answer.replace("RETRY", "False"), tmp_path)) as system:
        u = drives(system, 2)
        with pytest.raises(DeviceError, match="lamp off") as failure:
            Device(system).forward(u)
        assert not failure.value.retryable
        np.testing.assert_array_equal(system.forward(u), 2 * u)
    with ProcessSystem(command(answer.replace("RETRY", "True"), tmp_path)) as system:
        device = Device(system)
        np.testing.assert_array_equal(device.forward(u), 2 * u)
        assert device.retries_used == 1 and system.starts == 1


@pytest.mark.parametrize(
    "failure",
    [
        "sys.exit(3)",
        "print('nonsense', flush=True)",
        "say({'ok': True}, b'short'); sys.exit()",
        "import time; time.sleep(60)",
    ],
    ids=["dies", "talks nonsense", "breaks off", "hangs"],
)
def test_a_process_that_fails_is_started_anew(failure: str, tmp_path: Path) -> None:
    flag = tmp_path / "failed"
    answer = f"""
    if not __import__("os").path.exists({str(flag)!r}):
        open({str(flag)!r}, "w").close(); {failure}
    {GOOD}"""
    with ProcessSystem(command(answer.strip(), tmp_path), timeout_s=2.0) as system:
        u = drives(system, 2)
        device = Device(system)
        np.testing.assert_array_equal(device.forward(u), 2 * u)
        assert device.retries_used == 1 and system.starts == 2


@pytest.mark.parametrize(
    ("failure", "why"),
    [("sys.exit(3)", r"ended \(3\)"), ("import time; time.sleep(60)", r"not answer within 0\.5 s")],
    ids=["dies", "hangs"],
)
def test_a_process_that_keeps_failing_is_an_error_in_the_end(failure: str, why: str, tmp_path: Path) -> None:
    with (
        ProcessSystem(command(failure, tmp_path), timeout_s=0.5) as system,
        pytest.raises(DeviceError, match=why),
    ):
        Device(system, retries=2).forward(drives(system, 2))
    assert system.starts == 3


def test_what_cannot_be_started_or_does_not_introduce_itself(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cannot be started") as failure:
        ProcessSystem([str(tmp_path / "missing")])
    assert not failure.value.retryable
    for line, why in (("{}", "n_in, n_out"), ("hello", "no answer")):
        with pytest.raises(DeviceError, match=why):
            ProcessSystem([sys.executable, "-S", "-c", f"print('{line}', flush=True); input()"])


def test_serve_answers_in_the_same_process_too() -> None:
    u = drives(Doubler(), 2)
    requests = b'{"do": "forward", "rows": 2}\n' + u.astype("<f8").tobytes()
    requests += b'{"do": "state"}\n{"do": "advance", "seconds": 1}\n'
    answers = io.BytesIO()
    serve(Doubler(), io.BytesIO(requests), answers)
    answers.seek(0)
    facts, ok = json.loads(answers.readline()), json.loads(answers.readline())
    assert facts == {"n_in": 3, "n_out": 6, "input_range": [-1.0, 1.0], "kind": "device"} and ok == {
        "ok": True
    }
    np.testing.assert_array_equal(
        np.frombuffer(answers.read(2 * 6 * 8), "<f8").reshape(2, 6), Doubler().forward(u)
    )
    assert json.loads(answers.readline()) == {"ok": True, "state": None}
    refused = json.loads(answers.readline())
    assert not refused["ok"] and "advance" in refused["error"] and not refused["retryable"]
