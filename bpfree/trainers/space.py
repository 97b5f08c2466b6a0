"""What may be searched: each trainer declares which of its settings, over which range, on which scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: Settings that must have one of these values for a dimension to mean anything.
Given = Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included; whole numbers if both ends are.

    Attributes:
        low: Smallest value.
        high: Largest value.
        log: Whether equal ratios, rather than equal differences, are equally far apart.
        given: Where the setting has a meaning.
    """

    low: float
    high: float
    log: bool = False
    given: Given = field(default_factory=dict)

    def share(self, value: float) -> float:
        """Where ``value`` lies between the ends, 0 at ``low`` and 1 at ``high``, on the range's scale."""
        scale = math.log if self.log else float
        return (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{', log scale' if self.log else ''}"


@dataclass(frozen=True)
class Choice:
    """Some values, in their order if they are numbers.

    Attributes:
        values: What there is to choose from.
        given: Where the setting has a meaning.
    """

    values: tuple[Any, ...]
    given: Given = field(default_factory=dict)

    def __str__(self) -> str:
        return f"one of {', '.join(map(str, self.values))}"


Dimension = Range | Choice
Space = Mapping[str, Dimension]

#: What every trainer that steps along gradients may search.
STEPS: Space = {"lr": Range(1e-4, 1e-1, log=True), "weight_decay": Range(1e-6, 1e-2, log=True)}


def meant(space: Space, settings: Mapping[str, Any]) -> Space:
    """The dimensions of ``space`` that have a meaning beside these settings."""
    return {
        name: dimension
        for name, dimension in space.items()
        if all(settings[other] in allowed for other, allowed in dimension.given.items())
    }
