"""Cases with one network and several trainers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.robustness import _nets as nets
from benchmarks.robustness._by_hand import Net
from benchmarks.robustness._case import RIGHT, Cases, Outcome
from benchmarks.robustness._compare import as_by_hand, solves
from benchmarks.robustness._samples import samples
from benchmarks.robustness._verdict import Watch


def seeded(make: Callable[[], Sequence[nn.Module]], *starts: int) -> Callable[[], Net]:
    """Layers with the same weights each time; ``starts`` as in `Net`."""

    def made() -> Net:
        torch.manual_seed(3)
        return nets.of(make(), starts)

    return made


def by_hand_cases(
    registry: Cases,
    trainers: Sequence[str],
    name: str,
    shape: tuple[int, ...],
    make: Callable[[], Net],
    expected: frozenset[Outcome] = RIGHT,
    text: str = "plain",
    **settings: Any,
) -> None:
    """A case for each trainer, compared with its loop by hand."""
    for trainer in trainers:

        def attempt(watch: Watch, trainer: str = trainer) -> str | None:
            s = samples(*shape)
            return as_by_hand(watch, trainer, make, s.data, s, **settings)

        registry.add(trainer, name, text, expected)(attempt)


def solved_cases(
    registry: Cases,
    trainers: Sequence[str],
    name: str,
    shape: tuple[int, ...],
    make: Callable[[], nn.Module],
    expected: frozenset[Outcome] = RIGHT,
    text: str = "plain",
    at_least: float = 0.7,
    mentions: str = "",
    **settings: Any,
) -> None:
    """A case for each trainer, which must solve an easy problem."""
    for trainer in trainers:

        def attempt(watch: Watch, trainer: str = trainer) -> str | None:
            torch.manual_seed(3)
            s, net = samples(*shape), make()
            return solves(watch, trainer, net, s.data, s, at_least=at_least, fit={"epochs": 40}, **settings)

        registry.add(trainer, name, text, expected, mentions)(attempt)
