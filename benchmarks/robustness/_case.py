"""A case: a trainer, a network, an input, and the acceptable outcomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.robustness._verdict import Watch


class Outcome(StrEnum):
    """The outcome of a case; the last two are never acceptable."""

    RIGHT = "right"
    REFUSED = "refused"
    WARNED = "warned"
    WRONG = "WRONG"
    RAW = "RAW"


RIGHT = frozenset({Outcome.RIGHT})
REFUSED = frozenset({Outcome.REFUSED})
WARNED = frozenset({Outcome.WARNED})
#: There is no right result, or it is expensive: a message of either kind is enough.
REFUSED_OR_WARNED = REFUSED | WARNED
#: Supported or refused.
RIGHT_OR_REFUSED = RIGHT | REFUSED
#: Right, with or without a warning.
RIGHT_OR_WARNED = RIGHT | WARNED
#: Anything but a wrong result or an error of another library.
ANY = RIGHT | REFUSED | WARNED

#: Runs a case; returns the fault of the result as text, None if it is right.
Attempt = Callable[["Watch"], str | None]


@dataclass(frozen=True)
class Case:
    """One combination.

    Attributes:
        trainer: Id of the trainer, or the name of the function under test.
        net: Short description of the network.
        input: Short description of the input or of the call.
        expected: The acceptable outcomes.
        attempt: Runs the case.
        mentions: Regular expression that a refusal or warning must match.
        warning_is_enough: Whether one warning excuses a poor result, although a good one is possible.
    """

    trainer: str
    net: str
    input: str
    expected: frozenset[Outcome]
    attempt: Attempt
    mentions: str = ""
    warning_is_enough: bool = False

    @property
    def excused(self) -> bool:
        """Whether one warning is enough, for lack of a right result to compare with."""
        return self.warning_is_enough or Outcome.RIGHT not in self.expected

    @property
    def name(self) -> str:
        """Trainer, network and input."""
        return f"{self.trainer} / {self.net} / {self.input}"


class Cases:
    """The cases of one module, collected by decorator."""

    def __init__(self) -> None:
        self.all: list[Case] = []

    def add(
        self,
        trainer: str,
        net: str,
        text: str,
        expected: frozenset[Outcome] = RIGHT,
        mentions: str = "",
        warning_is_enough: bool = False,
    ) -> Callable[[Attempt], Attempt]:
        """Decorator for the function that runs the described case."""

        def decorator(attempt: Attempt) -> Attempt:
            self.all.append(Case(trainer, net, text, expected, attempt, mentions, warning_is_enough))
            return attempt

        return decorator
