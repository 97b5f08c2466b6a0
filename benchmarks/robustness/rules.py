"""Settings that change the update rule, compared with loops by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import bpfree
from benchmarks.robustness import _by_hand as hand
from benchmarks.robustness import _nets as nets
from benchmarks.robustness._case import RIGHT_OR_REFUSED, Case, Cases
from benchmarks.robustness._compare import (
    MakeNet,
    learns,
    losses_differ,
    rates,
    row,
    trainer_of,
    uses_differ,
)
from benchmarks.robustness._samples import samples
from benchmarks.robustness._verdict import Watch

registry = Cases()


def _sgd(parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=0.01)


def _adamw(parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr, weight_decay=0.1)


def _equal() -> hand.Net:
    return nets.mlp(hidden=(16, 16, 16, 16))


Loop = Callable[..., hand.Result]

#: Trainer, network, shape, settings, loop.
RULES: list[tuple[str, str, MakeNet, tuple[int, ...], dict[str, Any], Loop]] = [
    ("mono_forward", "mlp", nets.mlp, (12,), {"gradients": "analytic"}, hand.mono_forward),
    ("mono_forward", "mlp", nets.mlp, (12,), {"schedule": "greedy"}, hand.greedy),
    ("mono_forward", "conv2d", nets.conv2d, (1, 8, 8), {"schedule": "greedy"}, hand.greedy),
    ("mono_forward", "mlp", nets.mlp, (12,), {"schedule": "greedy", "cache": False}, hand.greedy),
    ("local", "mlp", nets.mlp, (12,), {"schedule": "greedy"}, hand.greedy),
    (
        "mono_forward",
        "mlp",
        nets.mlp,
        (12,),
        {"optimizer": "sgd", "weight_decay": 0.01},
        partial(hand.mono_forward, make=_sgd),
    ),
    (
        "mono_forward",
        "mlp",
        nets.mlp,
        (12,),
        {"optimizer": "sgd", "weight_decay": 0.01, "gradients": "analytic"},
        partial(hand.mono_forward, make=_sgd),
    ),
    (
        "mono_forward",
        "mlp",
        nets.mlp,
        (12,),
        {"optimizer": "adamw", "weight_decay": 0.1},
        partial(hand.mono_forward, make=_adamw),
    ),
    ("mono_forward", "mlp", nets.mlp, (12,), {"readout": "sum"}, partial(hand.mono_forward, readout="sum")),
    (
        "mono_forward",
        "conv2d",
        nets.conv2d,
        (1, 8, 8),
        {"readout": "sum_probabilities"},
        partial(hand.mono_forward, readout="probabilities"),
    ),
    ("mono_forward", "conv2d", nets.conv2d, (1, 8, 8), {"head_pool": 2}, partial(hand.mono_forward, pool=2)),
    ("mono_forward", "conv2d", nets.conv2d, (1, 8, 8), {"head_pool": 1}, partial(hand.mono_forward, pool=1)),
    ("cafo", "mlp", nets.mlp, (12,), {"gradients": "analytic"}, hand.cafo),
    ("cafo", "mlp", nets.mlp, (12,), {"cache": False}, hand.cafo),
    ("counter_current", "mlp", nets.mlp, (12,), {"gradients": "analytic"}, hand.counter_current),
    ("backprop", "mlp", nets.mlp, (12,), {"cut": 1}, hand.backprop),
    ("backprop", "conv2d", nets.conv2d, (1, 8, 8), {"cut": "activation"}, hand.backprop),
]


def _rule(
    trainer: str, net: str, make: MakeNet, shape: tuple[int, ...], settings: dict[str, Any], loop: Loop
) -> None:
    @registry.add(trainer, net, ", ".join(f"{k} = {v!r}" for k, v in settings.items()))
    def attempt(watch: Watch) -> str | None:
        s, lr = samples(*shape, noise=0.5), rates(trainer)
        made = trainer_of(trainer, row(make()), watch, lr=lr, **settings)
        history = made.fit(s.data, epochs=5, batch_size=48)
        by_hand = loop(make(), watch.first, s.x, s.y, 5, lr)
        return losses_differ(history, by_hand) or uses_differ(made, by_hand.scores, s.data, s)


for _row in RULES:
    _rule(*_row)


@registry.add("mono_forward", "mlp of equal layers", "gradients = 'stacked'")
def stacked(watch: Watch) -> str | None:
    s = samples(12, noise=0.5)
    one, other = (
        trainer_of("mono_forward", row(_equal()), Watch(), gradients=gradients, lr=0.01)
        for gradients in ("stacked", "autograd")
    )
    for made in (one, other):
        made.fit(s.data, epochs=20, batch_size=16)
    # The heads of a stack are initialized together, so the two have other heads; both solve the problem.
    return learns(one, s.data, at_least=0.6) or learns(other, s.data, at_least=0.6)


CUTS: list[tuple[Any, list[int]]] = [
    ("weight", [0, 3, 7]),
    ("conv", [0, 3, 7]),
    ("pool", [0, 3, 7]),
    ("activation", [0, 2, 7]),
    (1, [0, 7]),
    (2, [0, 3, 7]),
    (["3"], [0, 3, 7]),
    (["0", "2"], [0, 2, 7]),
]
for _cut, _starts in CUTS:
    for _name, _make, _shape in (("conv1d", nets.conv1d, (1, 12)), ("conv2d", nets.conv2d, (1, 8, 8))):

        @registry.add("mono_forward", _name, f"cut = {_cut!r}", RIGHT_OR_REFUSED)
        def cut_so(
            watch: Watch,
            cut: Any = _cut,
            starts: list[int] = _starts,
            make: MakeNet = _make,
            shape: tuple[int, ...] = _shape,
        ) -> str | None:
            s = samples(*shape)
            made = trainer_of("mono_forward", row(make()), watch, lr=0.01, cut=cut)
            history = made.fit(s.data, epochs=5, batch_size=48)
            by_hand = hand.mono_forward(nets.of(make().layers, starts), watch.first, s.x, s.y, 5, 0.01)
            return losses_differ(history, by_hand) or uses_differ(made, by_hand.scores, s.data, s)


@registry.add("mono_forward", "mlp", "the best epoch is restored")
def restored(watch: Watch) -> str | None:
    s, v = samples(12, noise=2.0), samples(12, noise=2.0, n=90, seed=4)
    made = trainer_of("mono_forward", row(nets.mlp()), watch, lr=0.05)
    history = made.fit(s.data, v.data, epochs=12, batch_size=16)
    best = max(next(iter(line["validation"].values())) for line in history.rows)
    share = float((made.predict(v.x) == v.y).float().mean())
    return None if abs(best - share) < 1e-6 else f"best epoch {best:.3f}, predict {share:.3f}"


@registry.add("mono_forward", "mlp", "patience stops where the history says")
def patience(watch: Watch) -> str | None:
    s, v = samples(12), samples(12, n=90, seed=4)
    made = trainer_of("mono_forward", row(nets.mlp()), watch, lr=0.05)
    history = made.fit(s.data, v.data, epochs=60, batch_size=16, patience=2)
    evaluations = [next(iter(line["validation"].values())) for line in history.rows]
    since = len(evaluations) - 1 - evaluations.index(max(evaluations))
    return (
        None
        if since == 2 and len(evaluations) < 60
        else f"stopped {since} epochs after the best of {len(evaluations)}"
    )


@registry.add("mono_forward", "mlp with dropout", "predict draws no mask")
def dropout(watch: Watch) -> str | None:
    torch.manual_seed(3)
    net = bpfree.nn.mlp([12, 32, 32, 3], dropout=0.5)
    s = samples(12)
    made = trainer_of("mono_forward", net, watch, lr=0.01)
    made.fit(s.data, epochs=40, batch_size=16)
    with torch.no_grad():
        plain = net.eval()(s.x).argmax(1)
    same = torch.equal(made.predict(s.x), plain)
    return learns(made, s.data) or (None if same else "predict differs from the network in evaluation mode")


for _block in (1, 2):

    @registry.add("mono_forward", "mlp", f"readout = 'block:{_block}'")
    def of_block(watch: Watch, block: int = _block) -> str | None:
        s = samples(12, noise=1.5)
        made = trainer_of("mono_forward", row(nets.mlp()), watch, lr=0.01, readout=f"block:{block}")
        made.fit(s.data, epochs=10, batch_size=48)
        evaluations = made.evaluate(s.data)
        predicted_share = float((made.predict(s.x) == s.y).float().mean())
        if abs(evaluations["blocks"][block - 1] - predicted_share) > 1e-6:
            return (
                f"block {block} alone {evaluations['blocks'][block - 1]:.3f}, predict {predicted_share:.3f}"
            )
        return (
            None if abs(evaluations["accuracy"] - predicted_share) < 1e-6 else "evaluate differs from predict"
        )


def cases() -> list[Case]:
    """All cases."""
    return registry.all
