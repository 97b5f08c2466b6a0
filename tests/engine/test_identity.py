"""The identity of a run is made of plain values, and its differences are named."""

from __future__ import annotations

from typing import Any

import torch

from bpfree import MonoForward
from bpfree.engine.identity import Identity, differences, fingerprint, identity
from bpfree.engine.settings import FitSettings, TrainerSettings
from tests.helpers import CLASSES, make_mlp

DATA = ["train", 40, [12], [], None, None, "0123"]


def make(**changes: Any) -> Identity:
    trainer = MonoForward(make_mlp(), progress=False)
    trainer.build((12,), CLASSES)
    values: dict[str, Any] = {
        "trainer": "mono_forward", "seed": 0, "settings": TrainerSettings(), "fit": FitSettings(),
        "cascade": trainer.cascade, "dtype": torch.float32, "train": DATA, "validation": None, "replaced": {},
    }  # fmt: skip
    return identity(**values | changes)


def test_equal_values_have_one_fingerprint() -> None:
    assert fingerprint(make()) == fingerprint(make())
    assert differences(make(), make()) == {}


def test_what_differs_is_named() -> None:
    other = make(seed=3, fit=FitSettings(epochs=4), train=[*DATA[:-1], "4567"], dtype=torch.float64)
    assert fingerprint(other) != fingerprint(make())
    assert differences(make(), other) == {
        "seed": "seed is 0 there and 3 here",
        "fit.epochs": "fit.epochs is 10 there and 4 here",
        "network": "the network is a different one",
        "train.content": "the training samples or labels are different",
    }


def test_an_optimizer_of_the_user_and_validation_data_belong_to_it() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    other = make(replaced={"block0": torch.optim.SGD([weight], 0.5)}, validation=DATA)
    names = {f"validation.{name}" for name in ("name", "samples", "shape", "augment", "content")}
    assert differences(make(), other).keys() == {"optimizers.block0"} | names
