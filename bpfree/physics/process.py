"""A physical system in another process, connected by pipes."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import IO, Any, Self, TypeAlias

import numpy as np

from bpfree._errors import BadValue, DeviceError
from bpfree._renamed import warn_renamed
from bpfree.physics.outputs import checked_forward
from bpfree.physics.state import State, StateDict, join_state, split_state
from bpfree.physics.system import Array, PhysicalSystem

_FLOAT64 = np.dtype("<f8")


#: A request or a reply, without the binary values.
Header: TypeAlias = dict[str, Any]


class ProcessSystem:
    """A system that runs in another process and communicates over standard input and output.

    The process first writes one line of JSON, ``{"n_in": ..., "n_out": ..., "input_range": [low, high]}``,
    optionally with ``"kind"``. Then it reads requests, each one line of JSON, and writes one reply to each.
    After ``{"do": "forward", "rows": B}`` the request has ``B * n_in`` little-endian float64 values; the
    reply is ``{"ok": true}`` and a newline, followed by ``B * n_out`` float64 values. The reply to a failed
    request is the line ``{"ok": false, "error": "...", "retryable": true}``. The standard error of the
    process is forwarded. `serve` implements this protocol for any system written in Python.

    If the process ends, sends an invalid reply or does not reply in time, it is stopped, and the call raises
    a retryable `DeviceError` that contains the end of its standard error. The next call starts a new process,
    which does not have the random state of the last one.

    Args:
        command: Program and arguments.
        timeout_s: Maximum time to wait for a reply, in seconds.
        start_timeout_s: Maximum time to wait for the first line, in seconds, which includes imports. None:
            ``timeout_s``, but at least 60 s.

    Attributes:
        starts: Number of times the command was started.

    Raises:
        BadValue: If ``command`` is not a list of strings, or a timeout is not positive.
        DeviceError: If the command cannot be started or its first line is invalid.
    """

    def __init__(
        self, command: Sequence[str], *, timeout_s: float = 60.0, start_timeout_s: float | None = None
    ) -> None:
        if start_timeout_s is None:
            start_timeout_s = max(60.0, timeout_s)
        if not command or isinstance(command, str) or timeout_s <= 0 or start_timeout_s <= 0:
            raise BadValue(
                f"command = {command!r}, timeout_s = {timeout_s}, start_timeout_s = {start_timeout_s}: "
                "expected a list of a program and its arguments, and timeouts above 0 s"
            )
        self.command, self.starts = list(command), 0
        self.timeout_s, self.start_timeout_s = timeout_s, start_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: _StandardError | None = None
        self._description: Header = {}
        self._start()

    def forward(self, u: Array) -> Array:
        """Compute the outputs ``[B, n_out]`` in float64; see `PhysicalSystem`."""
        drive = np.ascontiguousarray(u, _FLOAT64)
        data = self._request({"do": "forward", "rows": len(u)}, drive.tobytes(), len(u) * self.n_out * 8)[1]
        return np.frombuffer(data, _FLOAT64).reshape(len(u), self.n_out).astype(np.float64)

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` of simulated time pass in the system.

        Raises:
            DeviceError: If the system has no method ``advance`` (not retryable).
        """
        self._request({"do": "advance", "seconds": seconds})

    def state_dict(self) -> StateDict:
        """Return the state of the system; its value is None if the system has no method ``state_dict``."""
        return {"device": _decode(self._request({"do": "state"})[0]["state"])}

    def load_state_dict(self, state: StateDict) -> None:
        """Restore a `state_dict`."""
        if state["device"] is not None:
            self._request({"do": "load_state", "state": _encode(state["device"])})

    def close(self) -> None:
        """Close the input of the process, and kill the process if it does not end within 5 s."""
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                continue  # the process has already ended; no request is open
        try:
            process.wait(timeout=min(5.0, self.timeout_s))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if self._stderr is not None:
            self._stderr.join(timeout=1.0)  # a child of the process may keep the pipe open for longer

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
        description, _ = self._exchange(b"", 0, self.start_timeout_s)
        try:
            self.n_in, self.n_out = int(description["n_in"]), int(description["n_out"])
            low, high = description["input_range"]
            self.input_range = (float(low), float(high))
            valid = not self._description or description == self._description
        except (KeyError, TypeError, ValueError):
            valid = False
        if not valid:
            self.close()
            raise DeviceError(
                f"the first line of {self.command[0]} is {description}; expected n_in, n_out and input_range"
                + (f", as in the first start: {self._description}" if self._description else ""),
                retryable=False,
            )
        self.kind = str(description.get("kind", "device"))
        self._description = description

    def _request(self, header: Header, data: bytes = b"", reply_bytes: int = 0) -> tuple[Header, bytes]:
        if self._process is None:
            self._start()
        return self._exchange(json.dumps(header).encode() + b"\n" + data, reply_bytes, self.timeout_s)

    def _exchange(self, message: bytes, reply_bytes: int, timeout_s: float) -> tuple[Header, bytes]:
        """Send a message, and return the line and the bytes of the reply; stop the process on failure."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        timed_out = threading.Event()

        def give_up() -> None:
            # Killing the process ends the blocking read below on every platform.
            timed_out.set()
            process.kill()

        watchdog = threading.Timer(timeout_s, give_up)
        watchdog.start()
        line = data = b""
        reply: object = None
        try:
            process.stdin.write(message)
            process.stdin.flush()
            line = process.stdout.readline()
            reply = json.loads(line)
            if isinstance(reply, dict) and reply.get("ok", True):
                data = process.stdout.read(reply_bytes)
                if len(data) == reply_bytes:
                    return reply, data
        except (OSError, ValueError):
            reply = None
        except BaseException:  # interrupted: the rest of this reply would be read as the next one
            self._kill(process)
            raise
        finally:
            watchdog.cancel()
        if isinstance(reply, dict) and not reply.get("ok", True):
            raise DeviceError(str(reply.get("error")), retryable=bool(reply.get("retryable", True)))
        if timed_out.is_set():
            hint = "" if message else "; increase start_timeout_s if it takes longer to start"
            why = f"did not reply within {timeout_s} s{hint}"
        elif line.endswith(b"\n") and not isinstance(reply, dict):
            why = (
                f"wrote {line[:60]!r} to its standard output, which is not a valid reply; print to standard "
                "error instead"
            )
        else:
            what = f", after {len(data)} bytes of a reply of {reply_bytes}" if data else ""
            why = _ended(process) + what
        self._kill(process)
        assert self._stderr is not None
        raise DeviceError(f"the process {self.command[0]} {why}{self._stderr.tail()}")

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        self.close()


class _StandardError(threading.Thread):
    """Forwards the standard error of a process, and stores its last 4096 bytes."""

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
        """Return the last lines as the end of a message."""
        lines = [line.strip() for line in self._end.decode(errors="replace").splitlines() if line.strip()]
        text = " / ".join(lines[-3:])[-400:]
        return f"; its standard error ends with: {text}" if text else ""


def _ended(process: subprocess.Popen[bytes]) -> str:
    """Return how a process ended whose standard output is closed."""
    try:
        code = process.wait(timeout=1.0)
    except subprocess.TimeoutExpired:
        return "closed its standard output"
    return f"ended ({code if code >= 0 else signal.Signals(-code).name})"


def serve(
    system: PhysicalSystem,
    requests: IO[bytes] | None = None,
    replies: IO[bytes] | None = None,
    *,
    answers: IO[bytes] | None = None,
) -> None:
    """Reply to the requests of a `ProcessSystem` until the input ends, then close the system.

    The outputs are checked as by `bpfree.physics.Device`, and an exception of the system is raised by the
    `ProcessSystem` as a `DeviceError`. Standard output is used for the replies, so text that the system
    prints is redirected to standard error; standard input is empty for the system.

    Args:
        system: Any system.
        requests, replies: Binary streams for requests and replies; by default standard input and output.
        answers: Old name of ``replies``.
    """
    if answers is not None:
        warn_renamed("serve(answers=...)", "serve(replies=...)")
        replies = answers
    if requests is None:
        requests = os.fdopen(os.dup(0), "rb")
        with open(os.devnull, "rb") as empty:
            os.dup2(empty.fileno(), 0)
    if replies is None:
        replies = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)
    low, high = system.input_range
    description: Header = {"n_in": int(system.n_in), "n_out": int(system.n_out)}
    description |= {"input_range": [float(low), float(high)], "kind": getattr(system, "kind", "device")}
    _write(replies, description)
    try:
        while line := requests.readline():
            header = json.loads(line)
            drive = requests.read(header.get("rows", 0) * description["n_in"] * 8)
            try:
                reply, data = _reply(system, header, drive)
            except DeviceError as error:
                reply, data = {"ok": False, "error": str(error), "retryable": error.retryable}, b""
            except Exception as error:  # noqa: BLE001  it is raised in the other process
                text = f"{type(error).__name__}: {error}"
                reply, data = {"ok": False, "error": text, "retryable": False}, b""
            _write(replies, reply, data)
    finally:
        if hasattr(system, "close"):
            system.close()


def _reply(system: Any, header: Header, drive: bytes) -> tuple[Header, bytes]:
    match header["do"]:
        case "forward":
            u = np.frombuffer(drive, _FLOAT64).reshape(header["rows"], int(system.n_in))
            return {"ok": True}, checked_forward(system, u).astype(_FLOAT64).tobytes()
        case "state":
            state = system.state_dict() if hasattr(system, "state_dict") else None
            return {"ok": True, "state": _encode(state) if state is not None else None}, b""
        case "load_state" if hasattr(system, "load_state_dict"):
            system.load_state_dict(_decode(header["state"]))
            return {"ok": True}, b""
        case "advance" if hasattr(system, "advance"):
            system.advance(header["seconds"])
            return {"ok": True}, b""
        case request:
            raise DeviceError(f"{type(system).__name__} does not support {request!r}", retryable=False)


def _write(stream: IO[bytes], header: Header, data: bytes = b"") -> None:
    stream.write(json.dumps(header).encode() + b"\n" + data)
    stream.flush()


def _encode(state: State) -> Header:
    arrays, values = split_state(state)
    encoded = {
        path: {"dtype": a.dtype.str, "shape": a.shape, "base64": base64.b64encode(a.tobytes()).decode()}
        for path, a in arrays.items()
    }
    return {"arrays": encoded, "rest": values}


def _decode(encoded: Header | None) -> Any:
    if encoded is None:
        return None
    arrays = {
        path: np.frombuffer(base64.b64decode(a["base64"]), a["dtype"]).reshape(a["shape"]).copy()
        for path, a in encoded["arrays"].items()
    }
    return join_state(arrays, encoded["rest"])
