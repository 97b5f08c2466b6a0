"""Search spaces: the settings of a trainer that can be tuned, with their ranges and scales."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from bpfree._renamed import warn_renamed

#: The condition of a dimension: by setting, the values with which the dimension has an effect.
Given = Mapping[str, tuple[object, ...]]


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included; integers if both ends are integers.

    Attributes:
        low: Smallest value.
        high: Largest value.
        log: Whether the scale is logarithmic.
        given: Values of other settings with which this one has an effect.
    """

    low: float
    high: float
    log: bool = False
    given: Given = field(default_factory=dict)

    def fraction(self, value: float) -> float:
        """The position of ``value`` on the range's scale, 0 at ``low`` and 1 at ``high``."""
        scale = math.log if self.log else float
        return (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))

    def share(self, value: float) -> float:
        """Old name of `fraction`."""
        warn_renamed("Range.share", "Range.fraction")
        return self.fraction(value)

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{', log scale' if self.log else ''}"


@dataclass(frozen=True)
class Choice:
    """A finite set of values; numbers are in order.

    Attributes:
        values: The values.
        given: Values of other settings with which this one has an effect.
    """

    values: tuple[object, ...]
    given: Given = field(default_factory=dict)

    def __str__(self) -> str:
        return f"one of {', '.join(map(str, self.values))}"


Dimension = Range | Choice
Space = Mapping[str, Dimension]

#: The search space of every trainer with gradient steps.
STEPS: Space = {"lr": Range(1e-4, 1e-1, log=True), "weight_decay": Range(1e-6, 1e-2, log=True)}


def active_dimensions(space: Space, settings: Mapping[str, object]) -> Space:
    """The dimensions of ``space`` that have an effect with these settings."""
    return {
        name: dimension
        for name, dimension in space.items()
        if all(settings[other] in allowed for other, allowed in dimension.given.items())
    }
