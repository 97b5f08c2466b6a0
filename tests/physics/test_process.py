"""A system in another process: outputs and failures."""

from __future__ import annotations

import io
import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bpfree._errors import DeviceError
from bpfree.physics import AcousticCavity, Device, ProcessSystem, serve
from tests.helpers import heeding_interrupts
from tests.physics.systems import FAULTS, Doubler, drives

# Importing torch takes seconds; a process that implements the protocol needs neither torch nor bpfree.
BARE = """
import json, struct, sys
inp, out = sys.stdin.buffer, sys.stdout.buffer
def reply(header, data=b""):
    out.write(json.dumps(header).encode() + b"\\n" + data); out.flush()
reply({"n_in": 3, "n_out": 3, "input_range": [-1, 1], "kind": "bench"})
calls = 0
for line in inp:
    request = json.loads(line); rows = request.get("rows", 0)
    values = struct.unpack(f"<{3 * rows}d", inp.read(24 * rows)); calls += 1
    REPLY
"""
GOOD = 'reply({"ok": True}, struct.pack(f"<{3 * rows}d", *[2 * v for v in values]))'


def command(handler: str, tmp_path: Path) -> list[str]:
    script = tmp_path / "device.py"
    script.write_text(BARE.replace("REPLY", handler))
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


def test_outputs_equal_those_in_process_bit_for_bit() -> None:
    code = (
        "from bpfree.physics import AcousticCavity as A, serve\n"
        "class Chatty(A):\n"
        "    def forward(self, u):\n"
        "        print('hello')\n"
        "        try: input('standard input is empty')\n"
        "        except EOFError: return super().forward(u)\n"
        "serve(Chatty(seed_device=3))"
    )
    with ProcessSystem([sys.executable, "-c", code]) as served:
        local = AcousticCavity(seed_device=3)
        u = drives(local)
        for _ in range(2):
            np.testing.assert_array_equal(served.forward(u), local.forward(u))
        # The random state is sent as well.
        state = json.loads(json.dumps(served.state_dict()["device"]["random"]))
        assert state == json.loads(json.dumps(local.state_dict()["random"]))
        before = served.state_dict()
        first = served.forward(u)
        served.load_state_dict(before)
        np.testing.assert_array_equal(served.forward(u), first)
        served.advance(1.0)


def test_a_reported_failure_raises_with_its_message_and_keeps_the_process(tmp_path: Path) -> None:
    output = f'{GOOD} if calls > 1 else reply({{"ok": False, "error": "lamp off", "retryable": RETRY}})'
    with ProcessSystem(command(output.replace("RETRY", "False"), tmp_path)) as system:
        u = drives(system, 2)
        with pytest.raises(DeviceError, match="lamp off") as failure:
            Device(system).forward(u)
        assert not failure.value.retryable
        np.testing.assert_array_equal(system.forward(u), 2 * u)
    with ProcessSystem(command(output.replace("RETRY", "True"), tmp_path)) as system:
        device = Device(system)
        np.testing.assert_array_equal(device.forward(u), 2 * u)
        assert device.retries_used == 1 and system.starts == 1


@pytest.mark.parametrize(
    "failure",
    [
        "sys.exit(3)",
        "print('nonsense', flush=True)",
        "reply({'ok': True}, b'short'); sys.exit()",
        "import time; time.sleep(60)",
    ],
    ids=["exits", "writes text", "incomplete reply", "hangs"],
)
def test_a_failed_process_is_restarted(failure: str, tmp_path: Path) -> None:
    flag = tmp_path / "failed"
    output = f"""
    if not __import__("os").path.exists({str(flag)!r}):
        open({str(flag)!r}, "w").close(); {failure}
    {GOOD}"""
    with ProcessSystem(command(output.strip(), tmp_path), timeout_s=2.0) as system:
        u = drives(system, 2)
        device = Device(system)
        np.testing.assert_array_equal(device.forward(u), 2 * u)
        assert device.retries_used == 1 and system.starts == 2


@pytest.mark.parametrize(
    ("failure", "why"),
    [("sys.exit(3)", r"ended \(3\)"), ("import time; time.sleep(60)", r"not reply within 0\.5 s")],
    ids=["exits", "hangs"],
)
def test_a_process_that_keeps_failing_raises(failure: str, why: str, tmp_path: Path) -> None:
    with (
        ProcessSystem(command(failure, tmp_path), timeout_s=0.5) as system,
        pytest.raises(DeviceError, match=why),
    ):
        Device(system, retries=2).forward(drives(system, 1))
    assert system.starts == 3


def test_commands_that_cannot_start_or_have_an_invalid_first_line_raise(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cannot be started") as failure:
        ProcessSystem([str(tmp_path / "missing")])
    assert not failure.value.retryable
    for line, why in (("{}", "n_in, n_out"), ("hello", "not a valid reply")):
        with pytest.raises(DeviceError, match=why):
            ProcessSystem([sys.executable, "-S", "-c", f"print('{line}', flush=True); input()"])


def test_serve_works_with_byte_streams() -> None:
    u = drives(Doubler(), 2)
    requests = b'{"do": "forward", "rows": 2}\n' + u.astype("<f8").tobytes()
    requests += b'{"do": "state"}\n{"do": "advance", "seconds": 1}\n'
    outputs = io.BytesIO()
    serve(Doubler(), io.BytesIO(requests), outputs)
    outputs.seek(0)
    first_line, ok = json.loads(outputs.readline()), json.loads(outputs.readline())
    assert first_line == {"n_in": 3, "n_out": 6, "input_range": [-1.0, 1.0], "kind": "device"} and ok == {
        "ok": True
    }
    np.testing.assert_array_equal(
        np.frombuffer(outputs.read(2 * 6 * 8), "<f8").reshape(2, 6), Doubler().forward(u)
    )
    assert json.loads(outputs.readline()) == {"ok": True, "state": None}
    refused = json.loads(outputs.readline())
    assert not refused["ok"] and "advance" in refused["error"] and not refused["retryable"]


@pytest.mark.parametrize(
    ("failure", "why"),
    [
        ("raise OSError('lamp driver is gone')", r"ended \(1\).*OSError: lamp driver is gone$"),
        ("__import__('os').kill(__import__('os').getpid(), 11)", r"ended \(SIGSEGV\)$"),
        (
            "out.write(b'{\"ok\": true}\\n1234'); out.flush(); sys.exit()",
            r"ended \(0\), after 4 bytes .* of 48$",
        ),
        (
            "print('hello', flush=True)",
            r"wrote b'hello\\n' to its standard output, which is not a valid reply",
        ),
        ("out.write(b'\\xff\\xfe\\n'); out.flush()", r"wrote b'\\xff"),
    ],
    ids=["raises", "crashes", "incomplete reply", "prints", "binary"],
)
def test_the_message_contains_how_the_process_failed(failure: str, why: str, tmp_path: Path) -> None:
    with ProcessSystem(command(failure, tmp_path)) as system, pytest.raises(DeviceError, match=why) as caught:
        system.forward(drives(system, 2))
    assert caught.value.retryable and "(-9)" not in str(caught.value) and "SIGKILL" not in str(caught.value)


def test_a_process_that_ended_while_idle_is_restarted(tmp_path: Path) -> None:
    with ProcessSystem(command(GOOD, tmp_path)) as system:
        u = drives(system, 2)
        assert system._process is not None
        system._process.kill()
        system._process.wait()
        with pytest.raises(DeviceError, match="SIGKILL"):
            system.forward(u)
        np.testing.assert_array_equal(system.forward(u), 2 * u)


def test_errors_before_the_first_line_are_reported(tmp_path: Path) -> None:
    script = tmp_path / "device.py"
    script.write_text("import a_driver_that_is_missing")
    with pytest.raises(DeviceError, match=r"ended \(1\).*No module named 'a_driver_that_is_missing'"):
        ProcessSystem([sys.executable, "-S", str(script)])
    for line in ('{"n_in": "three", "n_out": 3, "input_range": [0, 1]}', '{"n_in": 3, "n_out": 3}'):
        with pytest.raises(DeviceError, match="the first line of"):
            ProcessSystem([sys.executable, "-S", "-c", f"print({line!r}, flush=True); input()"])


def test_a_slow_start_has_a_time_limit_of_its_own(tmp_path: Path) -> None:
    slow = command(GOOD, tmp_path)
    script = Path(slow[-1])
    script.write_text("import time; time.sleep(0.4)\n" + script.read_text())
    with ProcessSystem(slow, timeout_s=0.2) as system:
        u = drives(system, 1)
        np.testing.assert_array_equal(system.forward(u), 2 * u)
    with pytest.raises(DeviceError, match=r"not reply within 0\.1 s; increase start_timeout_s"):
        ProcessSystem(slow, start_timeout_s=0.1)


class Faulty(Doubler):
    """Applies ``fault`` to the correct output."""

    def __init__(self, fault: Callable[[Any], Any]) -> None:
        self.fault = fault

    def forward(self, u: Any) -> Any:
        return self.fault(super().forward(u))


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_outputs_are_checked_in_the_same_way_in_process_and_served(fault: Callable[[Any], Any]) -> None:
    u = drives(Doubler(), 4)
    with pytest.raises(DeviceError) as local:
        Device(Faulty(fault), retries=0).forward(u)
    outputs = io.BytesIO()
    serve(Faulty(fault), io.BytesIO(b'{"do": "forward", "rows": 4}\n' + u.tobytes()), outputs)
    served = json.loads(outputs.getvalue().splitlines()[1])
    assert served == {"ok": False, "error": str(local.value), "retryable": local.value.retryable}


def test_the_old_name_of_the_stream_is_accepted_with_a_warning() -> None:
    replies = io.BytesIO()
    with pytest.warns(FutureWarning, match="replies"):
        serve(Doubler(), io.BytesIO(), answers=replies)
    assert json.loads(replies.getvalue())["n_in"] == 3


def test_served_systems_may_use_numpy_numbers() -> None:
    class Box(Doubler):
        n_in, n_out, input_range = np.int64(3), np.int64(6), (np.float32(-1), np.float32(1))

    outputs = io.BytesIO()
    serve(Box(), io.BytesIO(), outputs)  # type: ignore[arg-type]
    assert json.loads(outputs.getvalue())["input_range"] == [-1.0, 1.0]


def test_a_process_that_ignores_the_end_of_its_input_is_killed(tmp_path: Path) -> None:
    deaf = command(GOOD, tmp_path)
    script = Path(deaf[-1])
    script.write_text(script.read_text() + "\nimport time; time.sleep(60)")
    system = ProcessSystem(deaf, timeout_s=0.3)
    u = drives(system, 1)
    np.testing.assert_array_equal(system.forward(u), 2 * u)
    process = system._process
    assert process is not None
    begin = time.monotonic()
    system.close()
    assert time.monotonic() - begin < 10 and process.returncode == -signal.SIGKILL
    system.close()  # a second time: nothing to do


def test_a_process_that_closes_its_output_and_lives_is_stopped(tmp_path: Path) -> None:
    mute = "__import__('os').close(1); __import__('time').sleep(60)"
    with ProcessSystem(command(mute, tmp_path)) as system:
        process = system._process
        with pytest.raises(DeviceError, match="closed its standard output"):
            system.forward(drives(system, 1))
        assert process is not None and process.poll() is not None


def test_after_an_interrupt_the_late_answer_is_not_taken_for_the_next_one(tmp_path: Path) -> None:
    late = f"""
    if calls == 1: __import__("time").sleep(1)
    {GOOD}"""
    with ProcessSystem(command(late.strip(), tmp_path)) as system:
        u = drives(system, 2)
        main = threading.main_thread().ident
        timer = threading.Timer(0.3, lambda: signal.pthread_kill(main, signal.SIGINT))
        with heeding_interrupts(), pytest.raises(KeyboardInterrupt):
            timer.start()
            system.forward(u)
        np.testing.assert_array_equal(system.forward(-u), -2 * u)
        assert system.starts == 2


class Closing(Doubler):
    """Fails for a drive of 0 and when time passes; counts how often it was closed."""

    closed = 0

    def forward(self, u: Any) -> Any:
        if (u == 0).all():
            raise DeviceError("the lamp warms up", retryable=True)
        return super().forward(u)

    def advance(self, seconds: float) -> None:
        raise ZeroDivisionError("no clock")

    def close(self) -> None:
        self.closed += 1


def test_serve_passes_errors_on_and_closes_the_system() -> None:
    forward = b'{"do": "forward", "rows": 1}\n'
    zero, one = (forward + np.full(3, value, "<f8").tobytes() for value in (0.0, 1.0))
    requests = zero + b'{"do": "advance", "seconds": 1}\n' + one
    system, answers = Closing(), io.BytesIO()
    serve(system, io.BytesIO(requests), answers)
    lines = answers.getvalue().split(b"\n")
    assert json.loads(lines[1]) == {"ok": False, "error": "the lamp warms up", "retryable": True}
    assert json.loads(lines[2]) == {"ok": False, "error": "ZeroDivisionError: no clock", "retryable": False}
    assert json.loads(lines[3]) == {"ok": True} and system.closed == 1
    with pytest.raises(json.JSONDecodeError):
        serve(system, io.BytesIO(b"no request\n"), io.BytesIO())
    assert system.closed == 2, "closed after an error too"
