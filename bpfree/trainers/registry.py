"""Trainers by id, so that a configuration can ask for one."""

from __future__ import annotations

import inspect
from typing import TypeVar

from bpfree._errors import BadValue
from bpfree._settings import did_you_mean
from bpfree.trainers.base import Trainer

T = TypeVar("T", bound=type[Trainer])

#: Every trainer that `register_trainer` has been told of, by id.
TRAINERS: dict[str, type[Trainer]] = {}


def register_trainer(kind: T) -> T:
    """Class decorator: make a `Trainer` known by its ``id``, to configurations and to the benchmark.

    Raises:
        BadValue: If the class is not a whole trainer, or another class has its id already.
    """
    if not (inspect.isclass(kind) and issubclass(kind, Trainer)):
        raise BadValue(f"{kind!r} is no trainer: expected a subclass of bpfree.Trainer")
    if inspect.isabstract(kind):
        missing = ", ".join(sorted(kind.__abstractmethods__))
        raise BadValue(f"{kind.__qualname__} is no whole trainer: it must say {missing}")
    name = getattr(kind, "id", None)
    if not isinstance(name, str) or not name:
        raise BadValue(f"{kind.__qualname__}.id = {name!r}: expected a name for the trainer")
    known = TRAINERS.get(name)
    if known is not None and known.__qualname__ != kind.__qualname__:
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
