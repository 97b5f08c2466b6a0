"""What a case is: a trainer, a network, an input, and the outcomes that are acceptable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.robustness._judge import Watch


class Outcome(StrEnum):
    """What became of a case; the last two are never acceptable."""

    RIGHT = "right"
    REFUSED = "refused"
    WARNED = "warned"
    WRONG = "WRONG"
    RAW = "RAW"


RIGHT = frozenset({Outcome.RIGHT})
REFUSED = frozenset({Outcome.REFUSED})
WARNED = frozenset({Outcome.WARNED})
#: There is no right value, or it is expensive: to say so in either way is enough.
SPOKEN = REFUSED | WARNED
#: Supported or refused, as long as it is one of the two.
RIGHT_OR_REFUSED = RIGHT | REFUSED
#: Right, with or without a warning.
RIGHT_OR_WARNED = RIGHT | WARNED
#: Anything but a false result or a foreign error.
ANY = RIGHT | REFUSED | WARNED

#: Runs a case under the eyes of a watch; returns what is wrong about the result, None if nothing is.
Attempt = Callable[["Watch"], str | None]


@dataclass(frozen=True)
class Case:
    """One combination.

    Attributes:
        trainer: Id of the trainer, or what stands in its place.
        net: The network, in a few words.
        input: What is ordinary or odd about the input, or about the use.
        expected: The outcomes that are acceptable.
        attempt: Runs it.
        says: What a refusal or warning must name, as a regular expression.
        warning_is_enough: Whether a poor result is excused by one warning, although a good one is possible.
    """

    trainer: str
    net: str
    input: str
    expected: frozenset[Outcome]
    attempt: Attempt
    says: str = ""
    warning_is_enough: bool = False

    @property
    def excused(self) -> bool:
        """Whether one warning is enough: there is no right result to compare with."""
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
        says: str = "",
        warning_is_enough: bool = False,
    ) -> Callable[[Attempt], Attempt]:
        """Decorator: the function runs the case that the arguments describe."""

        def decorator(attempt: Attempt) -> Attempt:
            self.all.append(Case(trainer, net, text, expected, attempt, says, warning_is_enough))
            return attempt

        return decorator
