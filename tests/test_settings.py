"""Settings are validated, and errors give the key and the value."""

from __future__ import annotations

import math
from typing import Any

import pytest

from bpfree import BadValue, ForwardForward, MonoForward, get_trainer
from bpfree._settings import did_you_mean, validate
from bpfree.trainers import TRAINERS, FitSettings, TrainerSettings
from tests.helpers import make_mlp, vectors


def test_valid_values_give_a_frozen_dataclass_with_defaults() -> None:
    settings = validate(TrainerSettings, {"lr": 0.5, "cut": ["1", "2"]}, "here")
    assert (settings.lr, settings.cut, settings.optimizer) == (0.5, ["1", "2"], "adam")
    with pytest.raises(AttributeError):
        settings.lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("settings", "values", "message"),
    [
        (
            TrainerSettings,
            {"momentun": 0.1},
            r"^here\.momentun: unknown key; did you mean 'momentum'\? allowed: cache",
        ),
        (TrainerSettings, {"lr": -1.0}, r"^here\.lr = -1\.0: .*greater than 0"),
        (TrainerSettings, {"lr": math.nan}, r"^here\.lr = nan"),
        (TrainerSettings, {"lr": math.inf}, r"^here\.lr = inf"),
        (TrainerSettings, {"lr": "0.1"}, r"^here\.lr = '0\.1'"),
        (TrainerSettings, {"weight_decay": -0.1}, r"^here\.weight_decay = -0\.1"),
        (TrainerSettings, {"momentum": 1.0}, r"^here\.momentum = 1\.0: .*less than 1"),
        (TrainerSettings, {"optimizer": "lion"}, r"^here\.optimizer = 'lion': .*'adam', 'adamw' or 'sgd'"),
        (TrainerSettings, {"schedule": "pipelined?"}, r"^here\.schedule = 'pipelined\?'"),
        (TrainerSettings, {"cache": 1}, r"^here\.cache = 1"),
        (FitSettings, {"epochs": 0}, r"^here\.epochs = 0: .*greater than or equal to 1"),
        (FitSettings, {"epochs": 2.0}, r"^here\.epochs = 2\.0"),
        (FitSettings, {"batch_size": 0}, r"^here\.batch_size = 0"),
        (FitSettings, {"patience": 0}, r"^here\.patience = 0"),
        (FitSettings, {"min_delta": 1.0}, r"^here\.min_delta = 1\.0"),
        (FitSettings, {"eval_every": 0}, r"^here\.eval_every = 0"),
    ],
)
def test_an_invalid_value_raises_an_error_with_key_and_value(
    settings: Any, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadValue, match=message):
        validate(settings, values, "here")


def test_one_error_lists_all_invalid_values() -> None:
    with pytest.raises(BadValue) as error:
        validate(TrainerSettings, {"lr": 0.0, "rl": 1, "momentum": 2.0}, "t")
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize("name", TRAINERS)
def test_unknown_settings_of_trainers_raise_an_error(name: str) -> None:
    with pytest.raises(BadValue, match=rf"{name}\.threshhold: unknown key"):
        get_trainer(name)(make_mlp(), threshhold=2)


def test_unknown_settings_of_fit_raise_an_error_before_training() -> None:
    trainer = MonoForward(make_mlp(), progress=False)
    with pytest.raises(BadValue, match=r"fit\.epoch: unknown key; did you mean 'epochs'"):
        trainer.fit(vectors(), epoch=2)
    with pytest.raises(BadValue, match="call fit, load or build first"):
        _ = trainer.cascade


@pytest.mark.parametrize("key", ["threshold", "alpha", "label_scale", "readout_lr"])
def test_zeros_in_settings_of_forward_forward_raise_an_error(key: str) -> None:
    with pytest.raises(BadValue, match=rf"forward_forward\.{key} = 0\.0"):
        ForwardForward(make_mlp(), **{key: 0.0})


def test_an_unknown_trainer_raises_an_error_with_a_hint() -> None:
    with pytest.raises(BadValue, match="did you mean 'forward_forward'"):
        get_trainer("forward-forward")


def test_a_hint_is_given_only_for_similar_names() -> None:
    assert did_you_mean("zzz", ["alpha", "beta"]) == "allowed: alpha, beta"
    assert did_you_mean("alpa", ["alpha", "beta"]).startswith("did you mean 'alpha'? ")
    assert did_you_mean("x", []) == "allowed: none"
