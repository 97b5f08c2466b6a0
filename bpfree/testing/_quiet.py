"""The law that nothing fails quietly."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from bpfree._errors import BadValue, Diverged
from bpfree.data import GraphData, as_data
from bpfree.testing._common import MakeTrainer
from bpfree.trainers import Trainer


def assert_nothing_fails_quietly(make_trainer: MakeTrainer, data: Any, *, huge_lr: float = 1e38) -> None:
    """Check that what goes wrong ends in an error that says so, and not in a history.

    A weight that is NaN, and a learning rate under which the weights explode, must raise `Diverged`; a NaN
    in the data must raise `BadValue` with the number of the sample, and a setting that is unknown or out of
    range with the setting's name, in the trainer as in `fit`.

    Args:
        make_trainer: Makes the trainer; given ``lr``, and a setting that no trainer has.
        data: Training data, as for `Trainer.fit`.
        huge_lr: The learning rate to fail with.

    Raises:
        AssertionError: naming what went wrong without an error.
    """
    samples = as_data(data)
    for what, settings in (("a weight that is NaN", {}), (f"lr = {huge_lr}", {"lr": huge_lr})):
        trainer = make_trainer(**settings)
        trainer.build_for(samples)
        if settings and all(block.rule.one_pass for block in trainer.cascade.units):
            continue  # it takes no steps
        if not settings:
            _poison(trainer)
        try:
            history = trainer.fit(samples, epochs=3, batch_size=16)
        except Diverged:
            continue
        raise AssertionError(f"{trainer.id}: {what} gave no error, but the history {history.rows}")
    middle = len(samples) // 2
    poisoned = _with_nan(samples, middle)
    _assert_refused(f"number {middle}", lambda: make_trainer().fit(poisoned))
    _assert_refused("no_such_setting", lambda: make_trainer(no_such_setting=1))
    _assert_refused("lr", lambda: make_trainer(lr=math.nan))
    _assert_refused("lr", lambda: make_trainer(lr=0.0))
    _assert_refused("no_such_setting", lambda: make_trainer().fit(samples, no_such_setting=1))
    _assert_refused("epochs", lambda: make_trainer().fit(samples, epochs=0))


def _with_nan(data: Any, number: int) -> Any:
    """The data with a sample, or the features of a node, that are NaN."""
    if isinstance(data, GraphData):
        features = data.features.clone()
        features[number] = math.nan
        return replace(data, features=features)
    x = data.batch(torch.arange(len(data)))[0]
    x[number] = math.nan
    return replace(data, x=x, mean=None, std=None, augment=())


@torch.no_grad()
def _poison(trainer: Trainer) -> None:
    """Make one weight of the lowest block NaN, so that every row has a NaN from there on."""
    next(p for p in trainer.cascade.units[0].parameters() if p.ndim > 1)[0].fill_(math.nan)


def _assert_refused(key: str, call: Any) -> None:
    try:
        call()
    except BadValue as error:
        if key not in str(error):
            raise AssertionError(f"the error about {key!r} does not name it: {error}") from None
        return
    raise AssertionError(f"a bad value for {key!r} was taken without an error")
