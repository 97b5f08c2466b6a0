"""A device in another process, behind a byte pipe: no tensor, no graph and no object can cross it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from bpfree._errors import BadValue, DeviceError
from bpfree.physics.answers import checked_forward
from bpfree.physics.state import join_state, split_state
from bpfree.physics.system import Array, PhysicalSystem

_FLOAT64 = np.dtype("<f8")


class ProcessSystem:
    """A system that is served by a command, over its standard input and output.

    The command first writes one line of JSON, ``{"n_in": ..., "n_out": ..., "input_range": [low, high]}`` and
    where it likes ``"kind"``. Then it answers requests, each one line of JSON. To
    ``{"do": "forward", "rows": B}``, followed by ``B * n_in`` little-endian float64, it writes
    ``{"ok": true}`` and a newline, followed by ``B * n_out`` float64. A failure is a line
    ``{"ok": false, "error": "...", "retryable": true}`` with nothing behind. Its standard error is passed
    on. `serve` does all this for any system written in Python.

    A process that ends, answers nonsense or does not answer in time is stopped, and the call raises a
    retryable `DeviceError` with the end of its standard error; the next call starts a new process, which
    knows nothing of the last one's random state.

    Args:
        command: Program and arguments.
        timeout_s: Longest wait for an answer, in seconds.
        start_timeout_s: Longest wait for the first line, in seconds: importing a driver may take long. None:
            ``timeout_s``, and 60 s at least.

    Attributes:
        starts: How often the command was started.

    Raises:
        DeviceError: If the command cannot be started or does not introduce itself.
    """

    def __init__(
        self, command: Sequence[str], *, timeout_s: float = 60.0, start_timeout_s: float | None = None
    ) -> None:
        if start_timeout_s is None:
            start_timeout_s = max(60.0, timeout_s)
        if not command or isinstance(command, str) or timeout_s <= 0 or start_timeout_s <= 0:
            raise BadValue(
                f"command = {command!r}, timeout_s = {timeout_s}, start_timeout_s = {start_timeout_s}: "
                "expected a list of a program and its arguments, and above 0 s"
            )
        self.command, self.starts = list(command), 0
        self.timeout_s, self.start_timeout_s = timeout_s, start_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: _StandardError | None = None
        self._facts: dict[str, Any] = {}
        self._start()

    def forward(self, u: Array) -> Array:
        """Answers ``[B, n_out]`` in float64; see `PhysicalSystem`."""
        drive = np.ascontiguousarray(u, _FLOAT64)
        data = self._request({"do": "forward", "rows": len(u)}, drive.tobytes(), len(u) * self.n_out * 8)[1]
        return np.frombuffer(data, _FLOAT64).reshape(len(u), self.n_out).astype(np.float64)

    def advance(self, seconds: float) -> None:
        """Pass on to the device.

        Raises:
            DeviceError: Not retryable, where the device has no clock to advance.
        """
        self._request({"do": "advance", "seconds": seconds})

    def state_dict(self) -> dict[str, Any]:
        """The device's own state; None inside where it offers none."""
        return {"device": _unpacked(self._request({"do": "state"})[0]["state"])}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` took."""
        if state["device"] is not None:
            self._request({"do": "load_state", "state": _packed(state["device"])})

    def close(self) -> None:
        """End the process: it sees the end of its input, and is killed if it has not gone after a while."""
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                continue  # it had gone before; nothing is lost, for every request was answered or has failed
        try:
            process.wait(timeout=min(5.0, self.timeout_s))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if self._stderr is not None:
            self._stderr.join(timeout=1.0)  # a child of the process may hold it open for longer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        try:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except OSError as error:
            raise DeviceError(f"{self.command[0]} cannot be started: {error}", retryable=False) from None
        assert self._process.stderr is not None
        self._stderr = _StandardError(self._process.stderr)
        self._stderr.start()
        self.starts += 1
        facts, _ = self._exchange(b"", 0, self.start_timeout_s)
        try:
            self.n_in, self.n_out = int(facts["n_in"]), int(facts["n_out"])
            low, high = facts["input_range"]
            self.input_range = (float(low), float(high))
            understood = not self._facts or facts == self._facts
        except (KeyError, TypeError, ValueError):
            understood = False
        if not understood:
            self.close()
            raise DeviceError(
                f"{self.command[0]} introduced itself as {facts}; expected n_in, n_out and input_range"
                + (f", as before: {self._facts}" if self._facts else ""),
                retryable=False,
            )
        self.kind = str(facts.get("kind", "device"))
        self._facts = facts

    def _request(
        self, header: Mapping[str, Any], data: bytes = b"", answer_bytes: int = 0
    ) -> tuple[dict[str, Any], bytes]:
        if self._process is None:
            self._start()
        return self._exchange(json.dumps(header).encode() + b"\n" + data, answer_bytes, self.timeout_s)

    def _exchange(self, message: bytes, answer_bytes: int, timeout_s: float) -> tuple[dict[str, Any], bytes]:
        """Send, and read the line and the bytes that come back; stop the process if that goes wrong."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        late = threading.Event()

        def give_up() -> None:
            # Killing it ends the blocking read below, on every platform.
            late.set()
            process.kill()

        watchdog = threading.Timer(timeout_s, give_up)
        watchdog.start()
        line = data = b""
        answer: Any = None
        try:
            process.stdin.write(message)
            process.stdin.flush()
            line = process.stdout.readline()
            answer = json.loads(line)
            if isinstance(answer, dict) and answer.get("ok", True):
                data = process.stdout.read(answer_bytes)
                if len(data) == answer_bytes:
                    return answer, data
        except (OSError, ValueError):
            answer = None
        except BaseException:  # interrupted half way: what is still in the pipe would answer the next request
            self._kill(process)
            raise
        finally:
            watchdog.cancel()
        if isinstance(answer, dict) and not answer.get("ok", True):
            raise DeviceError(str(answer.get("error")), retryable=bool(answer.get("retryable", True)))
        if late.is_set():
            hint = "" if message else "; give start_timeout_s if it takes longer to start"
            why = f"did not answer within {timeout_s} s{hint}"
        elif line.endswith(b"\n") and not isinstance(answer, dict):
            why = (
                f"wrote {line[:60]!r} to its standard output, which is no answer; nothing else may be "
                "written there: print to standard error"
            )
        else:
            what = f", {len(data)} bytes into an answer of {answer_bytes}" if data else ""
            why = _ended(process) + what
        self._kill(process)
        assert self._stderr is not None
        raise DeviceError(f"the process {self.command[0]} {why}{self._stderr.tail()}")

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        self.close()


class _StandardError(threading.Thread):
    """Passes a process's standard error on to ours, and remembers its end."""

    def __init__(self, pipe: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self._pipe, self._end = pipe, b""

    def run(self) -> None:
        """Read until the process has ended."""
        with self._pipe:
            while chunk := os.read(self._pipe.fileno(), 4096):
                self._end = (self._end + chunk)[-4096:]
                with contextlib.suppress(OSError):
                    os.write(2, chunk)

    def tail(self) -> str:
        """The last lines, as the end of a sentence."""
        lines = [line.strip() for line in self._end.decode(errors="replace").splitlines() if line.strip()]
        said = " / ".join(lines[-3:])[-400:]
        return f"; its standard error ends with: {said}" if said else ""


def _ended(process: subprocess.Popen[bytes]) -> str:
    """What became of a process whose output is at its end."""
    try:
        code = process.wait(timeout=1.0)
    except subprocess.TimeoutExpired:
        return "closed its standard output"
    return f"ended ({code if code >= 0 else signal.Signals(-code).name})"


def serve(
    system: PhysicalSystem, requests: IO[bytes] | None = None, answers: IO[bytes] | None = None
) -> None:
    """Serve a system to a `ProcessSystem` until the input ends, then close it.

    Answers are judged as `bpfree.physics.Device` judges those of a system in its own process, and whatever
    exception the system raises reaches the other side as a `DeviceError`. What is printed meanwhile goes to
    standard error, for standard output is the pipe, and standard input is at its end.

    Args:
        system: Any system.
        requests, answers: Binary streams; standard input and output by default.
    """
    if requests is None:
        requests = os.fdopen(os.dup(0), "rb")
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
    if answers is None:
        answers = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)
    low, high = system.input_range
    facts: dict[str, Any] = {"n_in": int(system.n_in), "n_out": int(system.n_out)}
    facts |= {"input_range": [float(low), float(high)], "kind": getattr(system, "kind", "device")}
    _write(answers, facts)
    try:
        while line := requests.readline():
            header = json.loads(line)
            drive = requests.read(header.get("rows", 0) * facts["n_in"] * 8)
            try:
                answer, data = _serve_one(system, header, drive)
            except DeviceError as error:
                answer, data = {"ok": False, "error": str(error), "retryable": error.retryable}, b""
            except Exception as error:  # noqa: BLE001  it is reported on the other side
                said = f"{type(error).__name__}: {error}"
                answer, data = {"ok": False, "error": said, "retryable": False}, b""
            _write(answers, answer, data)
    finally:
        if hasattr(system, "close"):
            system.close()


def _serve_one(system: Any, header: Mapping[str, Any], drive: bytes) -> tuple[dict[str, Any], bytes]:
    match header["do"]:
        case "forward":
            u = np.frombuffer(drive, _FLOAT64).reshape(header["rows"], int(system.n_in))
            return {"ok": True}, checked_forward(system, u).astype(_FLOAT64).tobytes()
        case "state":
            own = system.state_dict() if hasattr(system, "state_dict") else None
            return {"ok": True, "state": _packed(own) if own is not None else None}, b""
        case "load_state" if hasattr(system, "load_state_dict"):
            system.load_state_dict(_unpacked(header["state"]))
            return {"ok": True}, b""
        case "advance" if hasattr(system, "advance"):
            system.advance(header["seconds"])
            return {"ok": True}, b""
        case request:
            raise DeviceError(f"{type(system).__name__} does not know {request!r}", retryable=False)


def _write(answers: IO[bytes], header: Mapping[str, Any], data: bytes = b"") -> None:
    answers.write(json.dumps(header).encode() + b"\n" + data)
    answers.flush()


def _packed(state: Any) -> dict[str, Any]:
    arrays, rest = split_state(state)
    coded = {
        path: {"dtype": a.dtype.str, "shape": a.shape, "base64": base64.b64encode(a.tobytes()).decode()}
        for path, a in arrays.items()
    }
    return {"arrays": coded, "rest": rest}


def _unpacked(packed: dict[str, Any] | None) -> Any:
    if packed is None:
        return None
    arrays = {
        path: np.frombuffer(base64.b64decode(a["base64"]), a["dtype"]).reshape(a["shape"]).copy()
        for path, a in packed["arrays"].items()
    }
    return join_state(arrays, packed["rest"])
