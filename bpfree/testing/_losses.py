"""`check_local_loss`: all checks of a registered local loss, on a small cascade."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree._rows import Rows
from bpfree.data import TensorData
from bpfree.engine.feedback_check import warn_without_feedback
from bpfree.losses import OnePassLoss, make_loss
from bpfree.nn import mlp
from bpfree.testing._agreement import assert_schedules_agree
from bpfree.testing._common import MakeTrainer
from bpfree.testing._locality import assert_local, assert_locality
from bpfree.testing._quiet import assert_nothing_fails_quietly
from bpfree.testing._reproducible import assert_resumes, assert_same_seed_same_run
from bpfree.trainers import Local, Trainer

CLASSES, SAMPLES = 3, 40


def check_local_loss(name: str, net: nn.Module | None = None, sample_shape: tuple[int, ...] = (12,)) -> None:
    """Run all checks of a loss that was registered with `bpfree.register_loss`.

    The loss trains the blocks of a small cascade (`bpfree.Local`) on random data. It must be a finite scalar;
    return scores of the right shape, or None; not change its state in evaluation mode; send no gradient out
    of its block; give equal results under all schedules, for equal seeds, and after resuming; and raise an
    error if it becomes NaN. A warning is given if it uses feedback from the block above and receives none.

    Args:
        name: Name of the loss.
        net: Network for three classes, which is split into blocks. Default: an MLP with three hidden layers.
        sample_shape: Shape of a sample for ``net``.

    Raises:
        AssertionError: If a check fails. The message names the block and the parameter or setting.
        BadValue: If there is no loss with this name.
    """
    net = mlp([12, 16, 16, 16, CLASSES]) if net is None else net
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(SAMPLES, *sample_shape, generator=generator)
    y = torch.randint(CLASSES, (SAMPLES,), generator=generator)
    data = TensorData(x, y, CLASSES)

    def make_trainer(**settings: Any) -> Trainer:
        return Local(copy.deepcopy(net), loss=name, progress=False, **settings)

    _check_interface(name, make_trainer(), x, y)
    trainer = make_trainer()
    trainer.build_for(data)
    warn_without_feedback(trainer.cascade)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"block \d+ \(.*\) gets no message")  # given above
        warnings.filterwarnings("ignore", message=".* no better than")  # the labels are random
        _check_training(name, make_trainer, data)


def _check_training(name: str, make_trainer: MakeTrainer, data: TensorData) -> None:
    x, y = data.x, data.y
    assert_local(make_trainer(), x, y)
    assert_locality(make_trainer(), x, y)
    # With redrawn labels no features are cached. The result of a one-pass solve does not depend on the seed.
    assert_schedules_agree(make_trainer, data, greedy=not make_loss(name).signed)
    assert_same_seed_same_run(
        make_trainer, data, other_seed_differs=not isinstance(make_loss(name), OnePassLoss)
    )
    assert_nothing_fails_quietly(make_trainer, data)
    with TemporaryDirectory() as folder:
        assert_resumes(make_trainer, data, Path(folder))
        assert_resumes(
            lambda **settings: make_trainer(schedule="greedy", **settings), data, Path(folder) / "greedy"
        )


def _check_interface(name: str, trainer: Trainer, x: Tensor, y: Tensor) -> None:
    kind = type(make_loss(name))
    try:
        trainer.build(x.shape[1:], CLASSES)
    except BadValue as error:
        raise AssertionError(str(error)) from error
    rows: Rows
    rows, target, width = x, y, CLASSES
    if kind.signed:
        encoding, width = trainer.cascade.encoding, 1
        rows, target = encoding.encode(x, y, encoding.draw(y, torch.Generator().manual_seed(0)))
    outputs = trainer.cascade.outputs(rows)
    for k, (output, loss) in enumerate(zip(outputs, trainer.cascade.losses, strict=True)):
        if not isinstance(loss, kind):
            continue
        loss.eval()
        before = {key: tensor.clone() for key, tensor in loss.state_dict().items()}
        value, scores = loss(output, target), loss.scores(output)
        where = f"the loss {name!r} of block {k + 1}"
        if value.dim() != 0 or not value.isfinite():
            raise AssertionError(f"{where} returns {value}; expected a finite scalar")
        if scores is not None and tuple(scores.shape) != (len(target), width):
            raise AssertionError(
                f"{where} returns scores {list(scores.shape)}; expected [{len(target)}, {width}] or None"
            )
        for key, tensor in loss.state_dict().items():
            if not torch.equal(tensor, before[key]):
                raise AssertionError(f"{where} changes {key} in evaluation mode")
