"""The errors bpfree raises on purpose; each says what was wrong and what to do."""


class BpfreeError(Exception):
    """Base of every error that bpfree raises on purpose."""


class DataNotFound(BpfreeError, FileNotFoundError):
    """A data set is not where it was looked for, and could not be downloaded."""


class BadValue(BpfreeError, ValueError):
    """A value given by the caller is outside what is allowed."""


class BadKind(BadValue, TypeError):
    """A value given by the caller is of a kind that is not taken there."""


class Diverged(BpfreeError, ArithmeticError):
    """A loss became NaN or infinite; nothing after it can be trusted."""


class DeviceError(BpfreeError, RuntimeError):
    """A physical device did not answer, or answered what cannot be an answer.

    Args:
        message: What happened, and to which rows.
        retryable: Whether asking again may help (a dropped frame), or not (an answer of the wrong shape).
    """

    def __init__(self, message: str, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable


class MeterError(BpfreeError):
    """A meter that worked stopped working, or says what cannot be; no figure of it can be trusted."""


class NotMeasurable(BpfreeError):
    """This machine, or this user, cannot measure what was asked; the message says what to do."""


class LinkError(BpfreeError, RuntimeError):
    """A message between two workers is not the expected one: a gap, a repeat, or another shape."""


class WorkerLost(BpfreeError, RuntimeError):
    """A worker of a pipelined run is gone, or this one was stopped; a run that is started again resumes."""
