"""A device in another process, behind a byte pipe: no tensor, no graph and no object can cross it."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from bpfree._errors import BadValue, DeviceError
from bpfree.physics.state import join_state, split_state
from bpfree.physics.system import Array, PhysicalSystem

_FLOAT64 = np.dtype("<f8")


class ProcessSystem:
    """A system that is served by a command, over its standard input and output.

    The command first writes one line of JSON, ``{"n_in": ..., "n_out": ..., "input_range": [low, high]}`` and
    where it likes ``"kind"``. Then it answers requests, each one line of JSON. To
    ``{"do": "forward", "rows": B}``, followed by ``B * n_in`` little-endian float64, it writes
    ``{"ok": true}`` and a newline, followed by ``B * n_out`` float64. A failure is a line
    ``{"ok": false, "error": "...", "retryable": true}`` with nothing behind. Its standard error is left
    alone. `serve` does all this for any system written in Python.

    A process that ends, answers nonsense or does not answer in time is stopped, and the call raises a
    retryable `DeviceError`; the next call starts a new process, which knows nothing of the last one's random
    state.

    Args:
        command: Program and arguments.
        timeout_s: Longest wait for an answer, starting included.

    Attributes:
        starts: How often the command was started.

    Raises:
        DeviceError: If the command cannot be started or does not introduce itself.
    """

    def __init__(self, command: Sequence[str], *, timeout_s: float = 60.0) -> None:
        if not command or timeout_s <= 0:
            raise BadValue(f"command = {command}, timeout_s = {timeout_s}: expected a program, and above 0 s")
        self.command, self.timeout_s, self.starts = list(command), timeout_s, 0
        self._process: subprocess.Popen[bytes] | None = None
        self._facts: dict[str, Any] = {}
        self._start()
        self.n_in, self.n_out = int(self._facts["n_in"]), int(self._facts["n_out"])
        self.input_range = (float(self._facts["input_range"][0]), float(self._facts["input_range"][1]))
        self.kind = str(self._facts.get("kind", "device"))

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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        try:
            self._process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as error:
            raise DeviceError(f"{self.command[0]} cannot be started: {error}", retryable=False) from None
        self.starts += 1
        facts, _ = self._exchange(b"", 0)
        missing = {"n_in", "n_out", "input_range"} - facts.keys()
        if missing or (self._facts and facts != self._facts):
            self.close()
            raise DeviceError(
                f"{self.command[0]} introduced itself as {facts}; expected n_in, n_out and input_range"
                + (f", as before: {self._facts}" if self._facts else ""),
                retryable=False,
            )
        self._facts = facts

    def _request(
        self, header: Mapping[str, Any], data: bytes = b"", answer_bytes: int = 0
    ) -> tuple[dict[str, Any], bytes]:
        if self._process is None:
            self._start()
        return self._exchange(json.dumps(header).encode() + b"\n" + data, answer_bytes)

    def _exchange(self, message: bytes, answer_bytes: int) -> tuple[dict[str, Any], bytes]:
        """Send, and read the line and the bytes that come back; stop the process if that goes wrong."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        late = threading.Event()

        def give_up() -> None:
            # Killing it ends the blocking read below, on every platform.
            late.set()
            process.kill()

        watchdog = threading.Timer(self.timeout_s, give_up)
        watchdog.start()
        try:
            process.stdin.write(message)
            process.stdin.flush()
            line = process.stdout.readline()
            answer = json.loads(line) if line.endswith(b"\n") else None
            if isinstance(answer, dict) and answer.get("ok", True):
                data = process.stdout.read(answer_bytes)
                if len(data) == answer_bytes:
                    return answer, data
                answer = None
        except (OSError, json.JSONDecodeError):
            answer = None
        except BaseException:  # interrupted half way: what is still in the pipe would answer the next request
            self._kill(process)
            raise
        finally:
            watchdog.cancel()
        if isinstance(answer, dict):
            raise DeviceError(str(answer.get("error")), retryable=bool(answer.get("retryable", True)))
        self._kill(process)
        why = (
            f"did not answer within {self.timeout_s} s" if late.is_set() else f"ended ({process.returncode})"
        )
        raise DeviceError(f"the process {self.command[0]} {why}, or answered what is no answer")

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        self.close()


def serve(
    system: PhysicalSystem, requests: IO[bytes] | None = None, answers: IO[bytes] | None = None
) -> None:
    """Serve a system to a `ProcessSystem` until the input ends, then close it.

    What is printed meanwhile goes to standard error, for standard output is the pipe.

    Args:
        system: Any system.
        requests, answers: Binary streams; standard input and output by default.
    """
    requests = requests or sys.stdin.buffer
    if answers is None:
        answers = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)
    facts = {"n_in": system.n_in, "n_out": system.n_out, "input_range": list(system.input_range)}
    facts["kind"] = getattr(system, "kind", "device")
    _write(answers, facts)
    try:
        while line := requests.readline():
            header = json.loads(line)
            drive = requests.read(header.get("rows", 0) * system.n_in * 8)
            try:
                answer, data = _serve_one(system, header, drive)
            except DeviceError as error:
                answer = {"ok": False, "error": str(error), "retryable": error.retryable}
                data = b""
            _write(answers, answer, data)
    finally:
        if hasattr(system, "close"):
            system.close()


def _serve_one(system: Any, header: Mapping[str, Any], drive: bytes) -> tuple[dict[str, Any], bytes]:
    match header["do"]:
        case "forward":
            u = np.frombuffer(drive, _FLOAT64).reshape(header["rows"], system.n_in).astype(np.float64)
            y = np.asarray(system.forward(u), _FLOAT64)
            if y.shape != (len(u), system.n_out):
                expected = [len(u), system.n_out]
                raise DeviceError(
                    f"the device answered {list(y.shape)}; expected {expected}", retryable=False
                )
            return {"ok": True}, y.tobytes()
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
