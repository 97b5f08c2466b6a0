"""Check that failures raise errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch

from bpfree._errors import BadValue, Diverged
from bpfree.data import GraphData, TensorData, as_data
from bpfree.testing._common import MakeTrainer
from bpfree.trainers import Trainer

Data = TypeVar("Data", TensorData, GraphData)


def assert_nothing_fails_quietly(make_trainer: MakeTrainer, data: object, *, huge_lr: float = 1e38) -> None:
    """Check that failures raise an error that names the cause.

    A NaN weight, and a learning rate with which the weights overflow, must raise `Diverged`. A NaN in the
    data must raise `BadValue` with the index of the sample. An unknown or invalid setting, of the trainer or
    of `fit`, must raise `BadValue` with the name of the setting.

    Args:
        make_trainer: Returns the trainer, for given ``lr``, and for a setting that no trainer has.
        data: Training data, as for `Trainer.fit`.
        huge_lr: Learning rate with which training must fail.

    Raises:
        AssertionError: If a failure raises no error. The message names the failure.
    """
    samples = as_data(data)
    for what, settings in (("a NaN weight", {}), (f"lr = {huge_lr}", {"lr": huge_lr})):
        trainer = make_trainer(**settings)
        trainer.build_for(samples)
        if settings and all(block.rule.one_pass for block in trainer.cascade.units):
            continue  # it has no gradient steps
        if not settings:
            _set_nan_weight(trainer)
        try:
            history = trainer.fit(samples, epochs=3, batch_size=16)
        except Diverged:
            continue
        raise AssertionError(f"{trainer.id}: {what} raised no error; the history is {history.rows}")
    middle = len(samples) // 2
    with_nan = _with_nan(samples, middle)
    _assert_raises(f"number {middle}", lambda: make_trainer().fit(with_nan))
    _assert_raises("no_such_setting", lambda: make_trainer(no_such_setting=1))
    _assert_raises("lr", lambda: make_trainer(lr=math.nan))
    _assert_raises("lr", lambda: make_trainer(lr=0.0))
    _assert_raises("no_such_setting", lambda: make_trainer().fit(samples, no_such_setting=1))
    _assert_raises("epochs", lambda: make_trainer().fit(samples, epochs=0))


def _with_nan(data: Data, index: int) -> Data:
    """Copy of the data in which one sample, or the features of one node, are NaN."""
    if isinstance(data, GraphData):
        features = data.features.clone()
        features[index] = math.nan
        return replace(data, features=features)
    x = data.batch(torch.arange(len(data)))[0]
    x[index] = math.nan
    return replace(data, x=x, mean=None, std=None, augment=())


@torch.no_grad()
def _set_nan_weight(trainer: Trainer) -> None:
    """Set weights of the lowest block to NaN, so that the outputs of all samples have NaN."""
    next(p for p in trainer.cascade.units[0].parameters() if p.ndim > 1)[0].fill_(math.nan)


def _assert_raises(key: str, call: Callable[[], object]) -> None:
    """Check that ``call`` raises BadValue with ``key`` in the message."""
    try:
        call()
    except BadValue as error:
        if key not in str(error):
            raise AssertionError(f"the error about {key!r} does not name it: {error}") from None
        return
    raise AssertionError(f"an invalid value for {key!r} raised no error")
