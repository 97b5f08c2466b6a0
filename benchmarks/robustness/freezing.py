"""Frozen layers, statistics in evaluation mode, pretrained weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.robustness import _by_hand as hand
from benchmarks.robustness import _nets as nets
from benchmarks.robustness._case import (
    ANY,
    REFUSED,
    REFUSED_OR_WARNED,
    RIGHT,
    RIGHT_OR_REFUSED,
    RIGHT_OR_WARNED,
    Case,
    Cases,
)
from benchmarks.robustness._compare import (
    rates,
    row,
    solves,
    trainer_of,
)
from benchmarks.robustness._families import by_hand_cases, solved_cases
from benchmarks.robustness._samples import samples
from benchmarks.robustness._verdict import Watch

registry = Cases()


def _freeze(make: Callable[[], hand.Net], *layers: int) -> Callable[[], hand.Net]:
    def made() -> hand.Net:
        net = make()
        for k in layers:
            net.layers[k].requires_grad_(False)
        return net

    return made


for _text, _layers in (
    ("first layer frozen", (1,)),
    ("hidden layer frozen", (3,)),
    ("output layer frozen", (5,)),
    ("all but the output layer frozen", (1, 3)),
):
    for _trainer in (
        "mono_forward",
        "backprop",
        "backprop_ds",
        "mf_joint",
        "dfa",
        "local",
        "random_features",
        "cafo",
    ):
        if _trainer in ("mono_forward", "backprop", "dfa") or _text == "hidden layer frozen":
            by_hand_cases(
                registry,
                (_trainer,),
                "mlp",
                (12,),
                _freeze(nets.mlp, *_layers),
                RIGHT_OR_REFUSED | RIGHT_OR_WARNED,
                _text,
            )


def _all_frozen() -> nn.Module:
    return row(nets.mlp()).requires_grad_(False)


solved_cases(
    registry,
    ("mono_forward", "backprop", "dfa"),
    "mlp",
    (12,),
    _all_frozen,
    REFUSED_OR_WARNED | RIGHT,
    "everything frozen",
    at_least=0.0,
)

for _trainer in ("forward_forward", "counter_current"):
    for _text, _layers in (
        ("hidden layer frozen", (3,)),
        ("first layer frozen", (1,)),
        ("output layer frozen", (5,)),
    ):

        @registry.add(_trainer, "mlp", _text, ANY)
        def frozen_layer(
            watch: Watch, trainer: str = _trainer, layers: tuple[int, ...] = _layers
        ) -> str | None:
            s = samples(12)
            net = row(_freeze(nets.mlp, *layers)())
            before = [p.detach().clone() for k in layers for p in net[k].parameters()]
            made = trainer_of(trainer, net, watch, lr=rates(trainer))
            made.fit(s.data, epochs=3)
            after = [p for k in layers for p in net[k].parameters()]
            same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
            return None if same else "frozen weights have moved"


for _trainer in (
    "mono_forward",
    "backprop",
    "dfa",
    "counter_current",
    "forward_forward",
    "local",
    "backprop_ds",
):

    @registry.add(
        _trainer, "conv2d with batch norm", "batch norm frozen in evaluation mode", RIGHT_OR_WARNED | REFUSED
    )
    def frozen_statistics(watch: Watch, trainer: str = _trainer) -> str | None:
        s, net = samples(1, 8, 8), row(nets.conv2d(norm=True))
        for layer in net:
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval().requires_grad_(False)
        before = {k: v.clone() for k, v in net.state_dict().items() if "running" in k}
        made = trainer_of(trainer, net, watch, lr=rates(trainer))
        made.fit(s.data, epochs=3)
        moved = [k for k, v in before.items() if not torch.equal(v, net.state_dict()[k])]
        return f"statistics have moved: {moved}" if moved else None


for _trainer in ("mono_forward", "backprop"):

    @registry.add(_trainer, "mlp", "a layer in evaluation mode, not frozen", ANY)
    def left_in_eval(watch: Watch, trainer: str = _trainer) -> str | None:
        s, net = samples(12), row(nets.mlp())
        net.eval()
        return solves(watch, trainer, net, s.data, s, fit={"epochs": 60})


def _pretrained() -> nn.Sequential:
    s, net = samples(12), row(nets.mlp(hidden=(16, 14)))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(s.x), s.y).backward()
        optimizer.step()
    return net


for _trainer in sorted(set(hand.LOOPS) | {"forward_forward"}):

    @registry.add(
        _trainer,
        "mlp",
        "pretrained",
        RIGHT if _trainer != "forward_forward" else ANY,
        warning_is_enough=_trainer == "forward_forward",
    )
    def pretrained(watch: Watch, trainer: str = _trainer) -> str | None:
        s, net = samples(12), _pretrained()
        made = trainer_of(trainer, net, Watch(), lr=1e-9)
        before = [p.detach().clone() for p in net.parameters()]
        made.fit(s.data, epochs=1)
        far = max((a - b).abs().max().item() for a, b in zip(before, net.parameters(), strict=True))
        return None if far < 1e-4 else f"weights were drawn anew: they moved by {far:.2f} at lr = 1e-9"


def cases() -> list[Case]:
    """All cases."""
    return registry.all
