"""Compare a trained trainer with a loop by hand, or with the labels of an easy problem."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import bpfree
from benchmarks.robustness import _by_hand as hand
from benchmarks.robustness import _nets as nets
from benchmarks.robustness._samples import Samples, samples
from benchmarks.robustness._verdict import Watch
from bpfree.trainers import TRAINERS

EPOCHS = 5
#: Largest absolute and relative difference of class scores and losses from a loop by hand.
CLOSE = 5e-3

MakeNet = Callable[[], hand.Net]

#: Trainers of ordinary networks.
ORDINARY = sorted(set(hand.LOOPS) | {"forward_forward"})


def trainer_of(name: str, net: nn.Module, watch: Watch, **settings: Any) -> bpfree.Trainer:
    """A new trainer, whose network ``watch`` observes."""
    watch.protect(net)
    trainer = TRAINERS[name](net, progress=False, **settings)
    watch.follow(lambda: trainer.cascade)
    return trainer


def row(net: hand.Net) -> nn.Sequential:
    """The layers of the network in a `nn.Sequential`."""
    return nn.Sequential(*net.layers)


def rates(name: str) -> float:
    """A learning rate at which the trainer learns fast and a loop by hand stays close to it."""
    return {"counter_current": 0.1, "forward_forward": 1e-3}.get(name, 1e-2)


def as_by_hand(
    watch: Watch,
    name: str,
    make: MakeNet,
    data: Any,
    inputs: Samples,
    *,
    model: nn.Module | None = None,
    epochs: int = EPOCHS,
    loop: str | None = None,
    fit: dict[str, Any] | None = None,
    **settings: Any,
) -> str | None:
    """Train on ``data``, and by hand on the float32 samples that it holds; returns the first difference.

    Args:
        watch: The watch of the case.
        name: Id of the trainer.
        make: Creates the network, with the same weights each time.
        data: Argument of `fit`.
        inputs: The samples that the network should get.
        model: Argument of the trainer; by default the network in one `nn.Sequential`.
        epochs: Epochs of one batch each.
        loop: Name of the loop; by default the id of the trainer.
        fit: More arguments of `fit`.
        settings: Settings of the trainer.
    """
    lr = settings.pop("lr", rates(name))
    trainer = trainer_of(name, row(make()) if model is None else model, watch, lr=lr, **settings)
    arguments = {"epochs": epochs, "batch_size": max(2, len(inputs.y))} | (fit or {})
    history = trainer.fit(data, **arguments)
    reference = hand.LOOPS[loop or name](make(), watch.first, inputs.x, inputs.y, epochs, lr)
    if reference.losses and (fault := losses_differ(history, reference)):
        return fault
    return uses_differ(trainer, reference.scores, data, inputs)


def losses_differ(history: bpfree.History, reference: hand.Result) -> str | None:
    """The first difference between the losses in the history and those of the loop."""
    reported = [row["loss"] for row in history.rows]
    if len(reported) != len(reference.losses):
        return f"{len(reported)} epochs in the history, {len(reference.losses)} by hand"
    for number, (reported_row, by_hand) in enumerate(zip(reported, reference.losses, strict=True)):
        for a, b in zip(reported_row, by_hand, strict=False):
            if not math.isclose(a, b, rel_tol=CLOSE, abs_tol=CLOSE):
                return f"epoch {number + 1}: loss {a:.4f}, by hand {b:.4f}"
    return None


def uses_differ(trainer: bpfree.Trainer, scores: hand.Scores, data: Any, inputs: Samples) -> str | None:
    """The first difference of `predict` and `evaluate` on ``data`` from the class scores of the loop."""
    by_hand = scores(inputs.x)
    answer, sure = by_hand.argmax(1), certain(by_hand)
    predicted = trainer.predict(data.x if isinstance(data, bpfree.data.TensorData) else _first(data, inputs))
    if not torch.equal(predicted[sure], answer[sure]):
        return f"predict differs from the loop in {int((predicted != answer)[sure].sum())} of {len(inputs.y)}"
    share = trainer.evaluate(data)["accuracy"]
    right = float((answer == inputs.y).float().mean())
    if abs(share - right) > 1e-6 + float((~sure).float().mean()):
        return f"evaluate returns {share:.3f}, the loop {right:.3f}"
    return None


def _first(data: Any, inputs: Samples) -> Tensor:
    if isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[0], Tensor):
        return data[0]
    return inputs.x


def certain(scores: Tensor) -> Tensor:
    """Rows whose largest score is clearly above the second largest."""
    top = scores.topk(2, dim=1).values
    return (top[:, 0] - top[:, 1]) > 2 * CLOSE


def learns(trainer: bpfree.Trainer, data: Any, test: Any = None, at_least: float = 0.8) -> str | None:
    """None if the trained trainer solves an easy problem."""
    share = float(trainer.evaluate(data if test is None else test)["accuracy"])
    return None if share >= at_least else f"accuracy {share:.2f} on an easy problem, expected {at_least}"


def consistent(trainer: bpfree.Trainer, inputs: Samples, data: Any = None) -> str | None:
    """None if `evaluate` returns the accuracy of `predict`."""
    predicted = trainer.predict(inputs.x)
    share = float((predicted == inputs.y).float().mean())
    reported = float(trainer.evaluate(inputs.data if data is None else data)["accuracy"])
    return (
        None
        if abs(share - reported) < 1e-6
        else f"evaluate returns {reported:.3f}, predict gives {share:.3f}"
    )


def solves(
    watch: Watch,
    name: str,
    model: nn.Module,
    data: Any,
    inputs: Samples,
    *,
    at_least: float = 0.8,
    fit: dict[str, Any] | None = None,
    **settings: Any,
) -> str | None:
    """Train on an easy problem without a loop by hand: it is solved, and `evaluate` agrees with `predict`."""
    settings = {"lr": rates(name)} | settings
    trainer = trainer_of(name, model, watch, **settings)
    trainer.fit(data, **({"epochs": 30, "batch_size": 16} | (fit or {})))
    return learns(trainer, data, at_least=at_least) or consistent(trainer, inputs, data)


def fitted(watch: Watch, trainer: str = "mono_forward", **settings: Any) -> bpfree.Trainer:
    """A trainer of an MLP after a few epochs, at the end of its training."""
    trained = trainer_of(trainer, row(nets.mlp()), watch, lr=rates(trainer), **settings)
    trained.fit(samples(12).data, epochs=5)
    watch.end_training(trained.net)
    return trained
