"""Trainers by id."""

from __future__ import annotations

from typing import Any

import pytest

from bpfree import BadValue, Cascade, MonoForward, Trainer, get_trainer, register_trainer
from bpfree.trainers import TRAINERS


class Mine(MonoForward):
    id = "tests.mine"


def test_a_registered_trainer_is_found_by_its_id() -> None:
    assert register_trainer(Mine) is Mine
    try:
        assert get_trainer("tests.mine") is Mine
        # The same class can be registered again, another one cannot.
        register_trainer(Mine)
        other = type("Other", (MonoForward,), {"id": "tests.mine"})
        with pytest.raises(BadValue, match=r"a trainer with the id 'tests\.mine' exists already"):
            register_trainer(other)
    finally:
        del TRAINERS["tests.mine"]


def test_every_trainer_is_registered_under_its_id() -> None:
    assert all(kind.id == name and get_trainer(name) is kind for name, kind in TRAINERS.items())
    with pytest.raises(BadValue, match="unknown trainer 'mono_froward'; did you mean 'mono_forward'"):
        get_trainer("mono_froward")


class Nameless(Trainer):
    def make_cascade(self, n_classes: int) -> Cascade:
        raise AssertionError

    @property
    def locality(self) -> str:
        return "L1"


class Half(Trainer):
    id = "tests.half"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (int, "is no trainer"),
        ("mono_forward", "is no trainer"),
        (Nameless, r"Nameless\.id = None: expected a non-empty string"),
        (Half, "Half is abstract: expected a class that defines locality, make_cascade"),
    ],
)
def test_what_is_no_trainer_is_refused(kind: Any, message: str) -> None:
    with pytest.raises(BadValue, match=message):
        register_trainer(kind)
    assert "tests.half" not in TRAINERS
