"""Exceptions of bpfree. Each message gives the problem and the fix."""


class BpfreeError(Exception):
    """Base class of all exceptions of bpfree."""


class DataNotFound(BpfreeError, FileNotFoundError):
    """A data set was not found, or could not be read or downloaded."""


class BadValue(BpfreeError, ValueError):
    """An argument, setting or file has an invalid value."""


class BadKind(BadValue, TypeError):
    """An argument has an unsupported type."""


class Diverged(BpfreeError, ArithmeticError):
    """A loss, output or weight became NaN or infinite."""


class DeviceError(BpfreeError, RuntimeError):
    """A physical device failed, or returned an invalid output.

    Args:
        message: Description of the failure, and the rows that it affects.
        retryable: Whether repeating the call may succeed (a dropped frame) or not (an output of wrong shape).
    """

    def __init__(self, message: str, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable


class MeterError(BpfreeError):
    """A meter failed during a measurement, or returned impossible values."""


class NotMeasurable(BpfreeError):
    """A quantity cannot be measured on this machine or by this user."""


class LinkError(BpfreeError, RuntimeError):
    """A tensor sent between two workers has an unexpected step, type or shape."""


class WorkerLost(BpfreeError, RuntimeError):
    """A worker of a pipelined run ended, or this worker was asked to stop. The run can be resumed."""
