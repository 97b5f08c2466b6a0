"""Losses of users, losses that diverge, and the size of local heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import bpfree
from benchmarks.robustness import _nets as nets
from benchmarks.robustness._case import (
    REFUSED,
    RIGHT_OR_WARNED,
    WARNED,
    Case,
    Cases,
)
from benchmarks.robustness._compare import (
    learns,
    row,
    trainer_of,
)
from benchmarks.robustness._nets import linear
from benchmarks.robustness._samples import samples
from benchmarks.robustness._verdict import Watch
from bpfree.core.readouts import make_readouts
from bpfree.losses import FeedbackLoss, LocalCrossEntropy, LocalLoss

registry = Cases()


class Hides(LocalCrossEntropy):
    """Multi-margin loss, which is 0.0 for NaN."""

    def objective(self, scores: Tensor, target: Tensor) -> Tensor:
        return nn.functional.multi_margin_loss(scores, target)


class Vector(LocalCrossEntropy):
    """A loss for each row."""

    def objective(self, scores: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(scores, target, reduction="none")


class Detached(LocalCrossEntropy):
    """A loss without a graph."""

    def objective(self, scores: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(scores, target).detach()


class Number(LocalCrossEntropy):
    """A loss that is a float."""

    def objective(self, scores: Tensor, target: Tensor) -> Any:
        return nn.functional.cross_entropy(scores, target).item()


class NeedsFeedback(LocalCrossEntropy, FeedbackLoss):
    """Expects feedback, which the output layer does not send."""

    def make_feedback(self, message: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        return message, torch.eye(3)

    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        loss = super().forward(output, target)
        return loss if feedback is None else loss + feedback.sum() * 0


def _with_loss(watch: Watch, loss: Any, **settings: Any) -> str | None:
    s = samples(12)
    cascade = bpfree.localize(row(nets.mlp()), loss=loss)
    made = trainer_of("local", cascade, watch, **({"lr": 0.01} | settings))
    made.fit(s.data, epochs=3)
    return learns(made, s.data, at_least=0.0)


@registry.add("local", "mlp", "loss that is 0.0 for NaN weights")
def hidden_nan(watch: Watch) -> str | None:
    net = row(nets.mlp())
    with torch.no_grad():
        linear(net[1]).weight[0, 0] = float("nan")
    s = samples(12)
    made = trainer_of("local", bpfree.localize(net, loss=Hides), Watch(), lr=0.01)
    try:
        made.fit(s.data, epochs=2)
    except (bpfree.Diverged, bpfree.BadValue):
        return None
    return "trained on with NaN weights"


for _text, _loss, _expected in (
    ("loss for each row", Vector, REFUSED),
    ("loss without a graph", Detached, REFUSED),
    ("loss that is a number", Number, REFUSED),
    ("loss that waits for a message that is not sent", NeedsFeedback, REFUSED | WARNED),
):

    @registry.add("local", "mlp", _text, _expected)
    def own_loss(watch: Watch, loss: type[LocalLoss] = _loss) -> str | None:
        return _with_loss(watch, loss)


@registry.add("local", "mlp", "one loss object for several blocks", REFUSED, mentions=r"1.*2|2.*1")
def shared_loss(watch: Watch) -> str | None:
    loss = LocalCrossEntropy()
    return _with_loss(watch, lambda: loss)


@registry.add(
    "local", "mlp of equal widths", "one loss object for several blocks", REFUSED, mentions=r"1.*2|2.*1"
)
def shared_loss_equal(watch: Watch) -> str | None:
    s, loss = samples(12), LocalCrossEntropy()
    stages = [nn.Sequential(nn.Linear(12, 16), nn.ReLU()), nn.Sequential(nn.Linear(16, 16), nn.ReLU())]
    cascade = bpfree.Cascade(
        [bpfree.Block(stage, loss) for stage in stages], make_readouts("last", [loss, loss])
    )
    made = trainer_of("local", cascade, watch, lr=0.01)
    made.fit(s.data, epochs=2)
    return "accepted"


@registry.add("mono_forward", "mlp", "lr so large that it diverges")
def diverges(watch: Watch) -> str | None:
    s = samples(12)
    made = trainer_of("mono_forward", row(nets.mlp()), Watch(), lr=1e30, optimizer="sgd")
    try:
        made.fit(s.data, epochs=3)
    except (bpfree.Diverged, bpfree.BadValue):
        return None
    return None if made.model(s.x).isfinite().all() else "scores are not finite, and no word"


@registry.add("forward_forward", "conv2d", "collapsed block, with validation", WARNED | REFUSED)
def collapsed(watch: Watch) -> str | None:
    s, v = samples(1, 8, 8), samples(1, 8, 8, n=300, seed=4)
    made = trainer_of("forward_forward", row(nets.conv2d()), watch, lr=1.0)
    made.fit(s.data, v.data, epochs=20, batch_size=16)
    share = made.evaluate(v.data)["accuracy"]
    return None if share < 0.4 else f"this case is meant to collapse, and reached {share:.2f}"


@registry.add("mono_forward", "mlp", "learns nothing, with validation", WARNED)
def at_chance(watch: Watch) -> str | None:
    s, v = samples(12), samples(12, n=300, seed=4)
    noise = torch.rand(s.x.shape, generator=torch.Generator().manual_seed(1))
    made = trainer_of("mono_forward", row(nets.mlp()), watch, lr=1e-6)
    made.fit((noise, s.y), v.data, epochs=2)
    return None


@registry.add("mono_forward", "conv2d on large images", "size of the local heads", RIGHT_OR_WARNED)
def heads(watch: Watch) -> str | None:
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 100),
    )
    loss = sum(p.numel() for p in net.parameters())
    made = trainer_of("mono_forward", net, watch)
    made.build((3, 64, 64), 100)
    head_size = sum(p.numel() for p in made.cascade.parameters()) - loss
    return (
        None
        if head_size <= 4096 * 100 * 2
        else f"{head_size:,} parameters in local heads of a network of {loss:,}"
    )


@registry.add("backprop_ds", "conv2d on large images", "size of the local heads", RIGHT_OR_WARNED)
def heads_joint(watch: Watch) -> str | None:
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 100),
    )
    loss = sum(p.numel() for p in net.parameters())
    made = trainer_of("backprop_ds", net, watch)
    made.build((3, 64, 64), 100)
    head_size = sum(p.numel() for p in made.cascade.parameters()) - loss
    return (
        None
        if head_size <= 4096 * 100 * 3
        else f"{head_size:,} parameters in local heads of a network of {loss:,}"
    )


def cases() -> list[Case]:
    """All cases."""
    return registry.all
