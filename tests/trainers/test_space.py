"""Search spaces contain settings of their trainer, with values that it accepts."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

import bpfree
from bpfree._settings import validate
from bpfree.trainers import TRAINERS, Choice, Range, Trainer, active_dimensions


@pytest.mark.parametrize("kind", TRAINERS.values(), ids=TRAINERS)
def test_the_ends_of_every_range_are_accepted(kind: type[Trainer]) -> None:
    fields = kind.Settings.__dataclass_fields__
    for name, dimension in kind.space.items():
        ends = dimension.values if isinstance(dimension, Choice) else (dimension.low, dimension.high)
        for value in ends:
            settings = validate(kind.Settings, {name: value}, kind.id)
            assert getattr(settings, name) == value
        assert set(dimension.given) <= fields.keys()


@pytest.mark.parametrize("kind", TRAINERS.values(), ids=TRAINERS)
def test_values_in_conditions_are_accepted(kind: type[Trainer]) -> None:
    for dimension in kind.space.values():
        for other, allowed in dimension.given.items():
            for value in allowed:
                validate(kind.Settings, {other: value}, kind.id)


def test_a_setting_without_effect_is_not_searched() -> None:
    def names(trainer: str, **settings: Any) -> set[str]:
        kind = TRAINERS[trainer]
        return set(active_dimensions(kind.space, asdict(validate(kind.Settings, settings, trainer))))

    assert names("cafo", predictor="closed_form", schedule="simultaneous") == set()
    assert names("physical_ridge") == set()
    assert names("cafo") == {"lr", "weight_decay"}
    assert names("cafo", blocks="dfa") == {"lr", "weight_decay", "block_lr", "block_weight_decay"}
    assert "readout_lr" not in names("forward_forward", classifier=False, readout="goodness")
    assert "momentum" not in names("counter_current", optimizer="adam")


def test_a_fraction_of_a_range_follows_its_scale() -> None:
    assert Range(1e-4, 1e-2, log=True).fraction(1e-3) == pytest.approx(0.5)
    assert Range(0.0, 4.0).fraction(1.0) == 0.25
    assert Range(1e-4, 1e-2, log=True).fraction(1e-2) == 1.0


def test_old_names_are_accepted_with_a_warning() -> None:
    with pytest.warns(FutureWarning, match=r"Range\.share is now Range\.fraction"):
        assert Range(0.0, 4.0).share(1.0) == 0.25
    with pytest.warns(FutureWarning, match=r"trainers\.meant is now bpfree\.trainers\.active_dimensions"):
        assert bpfree.trainers.meant is active_dimensions
