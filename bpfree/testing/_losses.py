"""All laws that a registered local loss can be held to, on a small cascade."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from bpfree._errors import BadValue
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
    """Hold a loss that `bpfree.register_loss` knows to every law that concerns it.

    The loss trains the blocks of a small cascade (`bpfree.Local`, `bpfree.localize`) on random data: it must
    be a finite scalar, give scores of the right shape or none, stay the same when it is called in evaluation
    mode, keep its gradient inside its block, agree under every schedule, give the same run for the same seed
    and after a stop, and tell when it becomes NaN. There is a warning if it takes messages from the block
    above and is sent none.

    Args:
        name: The loss.
        net: The network to cut, for three classes; by default a perceptron with three hidden layers.
        sample_shape: Shape of a sample that ``net`` takes.

    Raises:
        AssertionError: naming the law that is broken, and where.
        BadValue: If no loss has that name.
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
        warnings.filterwarnings("ignore", message=r"block \d+ \(.*\) gets no message")  # it was said
        warnings.filterwarnings("ignore", message=".* no better than")  # on random labels
        _check_laws(name, make_trainer, data)


def _check_laws(name: str, make_trainer: MakeTrainer, data: TensorData) -> None:
    x, y = data.x, data.y
    assert_local(make_trainer(), x, y)
    assert_locality(make_trainer(), x, y)
    # Where labels are drawn anew, there are no features to keep; what is solved does not depend on the seed.
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
    rows, target, width = x, y, CLASSES
    if kind.signed:
        encoding, width = trainer.cascade.encoding, 1
        rows, target = encoding.encode(x, y, encoding.draw(y, torch.Generator().manual_seed(0)))  # type: ignore[assignment]
    outputs = trainer.cascade.outputs(rows)
    for k, (output, loss) in enumerate(zip(outputs, trainer.cascade.losses, strict=True)):
        if not isinstance(loss, kind):
            continue
        loss.eval()
        before = {key: tensor.clone() for key, tensor in loss.state_dict().items()}
        value, scores = loss(output, target), loss.scores(output)
        where = f"the loss {name!r} of block {k + 1}"
        if value.dim() != 0 or not value.isfinite():
            raise AssertionError(f"{where} is {value}; expected a finite scalar")
        if scores is not None and tuple(scores.shape) != (len(target), width):
            raise AssertionError(
                f"{where} gives scores {list(scores.shape)}; expected [{len(target)}, {width}], or None"
            )
        for key, tensor in loss.state_dict().items():
            if not torch.equal(tensor, before[key]):
                raise AssertionError(f"{where} changes its {key} in evaluation mode")
