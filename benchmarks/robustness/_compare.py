"""Compare what a trainer has come to with a loop by hand, or with an easy problem's answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import bpfree
from benchmarks.robustness import _by_hand as hand
from benchmarks.robustness import _nets as nets
from benchmarks.robustness._judge import Watch
from benchmarks.robustness._samples import Samples, samples
from bpfree.trainers import TRAINERS

EPOCHS = 5
#: Largest difference of class scores and losses from a loop by hand, absolute and relative.
CLOSE = 5e-3

MakeNet = Callable[[], hand.Net]

#: Trainers of ordinary networks.
ORDINARY = sorted(set(hand.LOOPS) | {"forward_forward"})


def trainer_of(name: str, net: nn.Module, watch: Watch, **settings: Any) -> bpfree.Trainer:
    """A trainer, watched from now on."""
    watch.over(net)
    made = TRAINERS[name](net, progress=False, **settings)
    watch.follow(lambda: made.cascade)
    return made


def row(net: hand.Net) -> nn.Sequential:
    """The network as one module."""
    return nn.Sequential(*net.layers)


def rates(name: str) -> float:
    """A learning rate that a trainer learns quickly with, and a loop by hand follows closely."""
    return {"counter_current": 0.1, "forward_forward": 1e-3}.get(name, 1e-2)


def as_by_hand(
    watch: Watch,
    name: str,
    make: MakeNet,
    data: Any,
    seen: Samples,
    *,
    model: nn.Module | None = None,
    epochs: int = EPOCHS,
    loop: str | None = None,
    fit: dict[str, Any] | None = None,
    **settings: Any,
) -> str | None:
    """Train on ``data``, and by hand on the float32 samples that it stands for; what differs.

    Args:
        watch: The watch of the case.
        name: Id of the trainer.
        make: Makes the network, with the same weights each time.
        data: What is given to `fit`.
        seen: What the network should see of it.
        model: What is given to the trainer; by default the network in one `nn.Sequential`.
        epochs: Epochs of one batch each.
        loop: Name of the loop; by default that of the trainer.
        fit: More arguments of `fit`.
        settings: Of the trainer.
    """
    lr = settings.pop("lr", rates(name))
    trainer = trainer_of(name, row(make()) if model is None else model, watch, lr=lr, **settings)
    arguments = {"epochs": epochs, "batch_size": max(2, len(seen.y))} | (fit or {})
    history = trainer.fit(data, **arguments)
    found = hand.LOOPS[loop or name](make(), watch.first, seen.x, seen.y, epochs, lr)
    if found.losses and (fault := losses_differ(history, found)):
        return fault
    return uses_differ(trainer, found.scores, data, seen)


def losses_differ(history: bpfree.History, found: hand.Found) -> str | None:
    """Whether the losses of the history are those of the loop."""
    told = [row["loss"] for row in history.rows]
    if len(told) != len(found.losses):
        return f"{len(told)} epochs in the history, {len(found.losses)} by hand"
    for number, (ours, by_hand) in enumerate(zip(told, found.losses, strict=True)):
        for a, b in zip(ours, by_hand, strict=False):
            if not math.isclose(a, b, rel_tol=CLOSE, abs_tol=CLOSE):
                return f"epoch {number + 1}: loss {a:.4f}, by hand {b:.4f}"
    return None


def uses_differ(trainer: bpfree.Trainer, scores: hand.Scores, data: Any, seen: Samples) -> str | None:
    """Whether `predict` and `evaluate` say what ``scores`` say, of ``data`` and the samples behind it."""
    by_hand = scores(seen.x)
    answer, sure = by_hand.argmax(1), certain(by_hand)
    predicted = trainer.predict(data.x if isinstance(data, bpfree.data.TensorData) else _first(data, seen))
    if not torch.equal(predicted[sure], answer[sure]):
        return f"predict differs from the loop in {int((predicted != answer)[sure].sum())} of {len(seen.y)}"
    share = trainer.evaluate(data)["accuracy"]
    right = float((answer == seen.y).float().mean())
    if abs(share - right) > 1e-6 + float((~sure).float().mean()):
        return f"evaluate says {share:.3f}, the loop {right:.3f}"
    return None


def _first(data: Any, seen: Samples) -> Tensor:
    if isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[0], Tensor):
        return data[0]
    return seen.x


def certain(scores: Tensor) -> Tensor:
    """Rows whose largest score stands clear of the next."""
    top = scores.topk(2, dim=1).values
    return (top[:, 0] - top[:, 1]) > 2 * CLOSE


def learns(trainer: bpfree.Trainer, data: Any, test: Any = None, at_least: float = 0.8) -> str | None:
    """Whether a trained trainer solves an easy problem."""
    share = float(trainer.evaluate(data if test is None else test)["accuracy"])
    return None if share >= at_least else f"accuracy {share:.2f} on an easy problem, expected {at_least}"


def consistent(trainer: bpfree.Trainer, seen: Samples, data: Any = None) -> str | None:
    """Whether `evaluate` gives the share that `predict` has right."""
    predicted = trainer.predict(seen.x)
    share = float((predicted == seen.y).float().mean())
    told = float(trainer.evaluate(seen.data if data is None else data)["accuracy"])
    return None if abs(share - told) < 1e-6 else f"evaluate says {told:.3f}, predict has {share:.3f} right"


def solves(
    watch: Watch,
    name: str,
    model: nn.Module,
    data: Any,
    seen: Samples,
    *,
    at_least: float = 0.8,
    fit: dict[str, Any] | None = None,
    **settings: Any,
) -> str | None:
    """Train where there is no loop by hand: an easy problem is solved, `evaluate` agrees with `predict`."""
    settings = {"lr": rates(name)} | settings
    trainer = trainer_of(name, model, watch, **settings)
    trainer.fit(data, **({"epochs": 30, "batch_size": 16} | (fit or {})))
    return learns(trainer, data, at_least=at_least) or consistent(trainer, seen, data)


def fitted(watch: Watch, trainer: str = "mono_forward", **settings: Any) -> bpfree.Trainer:
    """A perceptron, trained for a few epochs; what comes next is a use of its own."""
    made = trainer_of(trainer, row(nets.mlp()), watch, lr=rates(trainer), **settings)
    made.fit(samples(12).data, epochs=5)
    watch.used(made.net)
    return made
