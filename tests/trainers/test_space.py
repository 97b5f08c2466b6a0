"""What trainers declare to be searched is made of their own settings, and nothing they would refuse."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from bpfree._settings import validate
from bpfree.trainers import TRAINERS, Choice, Range, Trainer, meant


@pytest.mark.parametrize("kind", TRAINERS.values(), ids=TRAINERS)
def test_every_end_of_a_space_is_accepted(kind: type[Trainer]) -> None:
    fields = kind.Settings.__dataclass_fields__
    for name, dimension in kind.space.items():
        ends = dimension.values if isinstance(dimension, Choice) else (dimension.low, dimension.high)
        for value in ends:
            settings = validate(kind.Settings, {name: value}, kind.id)
            assert getattr(settings, name) == value
        assert set(dimension.given) <= fields.keys()


@pytest.mark.parametrize("kind", TRAINERS.values(), ids=TRAINERS)
def test_conditions_name_values_that_a_setting_can_have(kind: type[Trainer]) -> None:
    for dimension in kind.space.values():
        for other, allowed in dimension.given.items():
            for value in allowed:
                validate(kind.Settings, {other: value}, kind.id)


def test_a_setting_without_a_meaning_is_not_searched() -> None:
    def names(trainer: str, **settings: Any) -> set[str]:
        kind = TRAINERS[trainer]
        return set(meant(kind.space, asdict(validate(kind.Settings, settings, trainer))))

    assert names("cafo", predictor="closed_form", schedule="simultaneous") == set()
    assert names("physical_ridge") == set()
    assert names("cafo") == {"lr", "weight_decay"}
    assert names("cafo", blocks="dfa") == {"lr", "weight_decay", "block_lr", "block_weight_decay"}
    assert "readout_lr" not in names("forward_forward", classifier=False, readout="goodness")
    assert "momentum" not in names("counter_current", optimizer="adam")


def test_shares_of_a_range_follow_its_scale() -> None:
    assert Range(1e-4, 1e-2, log=True).share(1e-3) == pytest.approx(0.5)
    assert Range(0.0, 4.0).share(1.0) == 0.25
    assert Range(1e-4, 1e-2, log=True).share(1e-2) == 1.0
