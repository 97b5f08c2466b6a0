"""The registry of trainers, by id."""

from __future__ import annotations

import inspect
from typing import TypeVar

from bpfree._errors import BadValue
from bpfree._settings import did_you_mean
from bpfree.trainers.base import Trainer

T = TypeVar("T", bound=type[Trainer])

#: The registered trainers, by id.
TRAINERS: dict[str, type[Trainer]] = {}


def register_trainer(kind: T) -> T:
    """Class decorator that registers a `Trainer` under its ``id``, for configurations and the benchmark.

    Raises:
        BadValue: If the class is no trainer, has abstract methods, or another class has the same id.
    """
    if not (inspect.isclass(kind) and issubclass(kind, Trainer)):
        raise BadValue(f"{kind!r} is no trainer: expected a subclass of bpfree.Trainer")
    if inspect.isabstract(kind):
        missing = ", ".join(sorted(kind.__abstractmethods__))
        raise BadValue(f"{kind.__qualname__} is abstract: expected a class that defines {missing}")
    name = getattr(kind, "id", None)
    if not isinstance(name, str) or not name:
        raise BadValue(f"{kind.__qualname__}.id = {name!r}: expected a non-empty string")
    registered = TRAINERS.get(name)
    if registered is not None and registered.__qualname__ != kind.__qualname__:
        raise BadValue(f"a trainer with the id {name!r} exists already: choose another id")
    TRAINERS[name] = kind
    return kind


def get_trainer(name: str) -> type[Trainer]:
    """The trainer class with this id.

    Raises:
        BadValue: If there is none.
    """
    if name not in TRAINERS:
        raise BadValue(f"unknown trainer {name!r}; {did_you_mean(name, TRAINERS)}")
    return TRAINERS[name]
