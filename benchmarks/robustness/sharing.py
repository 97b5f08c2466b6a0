"""Layers that are used twice, weights that are tied."""

from __future__ import annotations

import torch
from torch import nn

import bpfree
from benchmarks.robustness import _by_hand as hand
from benchmarks.robustness import _nets as nets
from benchmarks.robustness._case import (
    REFUSED,
    REFUSED_OR_WARNED,
    RIGHT_OR_REFUSED,
    Case,
    Cases,
)
from benchmarks.robustness._compare import (
    row,
    trainer_of,
)
from benchmarks.robustness._families import by_hand_cases, solved_cases
from benchmarks.robustness._nets import linear
from benchmarks.robustness._samples import samples
from benchmarks.robustness._verdict import Watch

registry = Cases()


LOCAL = ("mono_forward", "local", "dfa", "cafo", "random_features")
TWO = ("mono_forward", "backprop")


def _reused_activation() -> hand.Net:
    torch.manual_seed(3)
    act = nn.Tanh()
    return nets.of([nn.Linear(12, 16), act, nn.Linear(16, 14), act, nn.Linear(14, 3)], [0, 2, 4])


by_hand_cases(
    registry,
    (*LOCAL, "backprop", "backprop_ds"),
    "mlp that uses one activation object twice",
    (12,),
    _reused_activation,
)


def _reused_norm() -> nn.Module:
    norm = nn.BatchNorm1d(16)
    return nn.Sequential(
        nn.Linear(12, 16), norm, nn.ReLU(), nn.Linear(16, 16), norm, nn.ReLU(), nn.Linear(16, 3)
    )


def _reused_linear() -> nn.Module:
    layer = nn.Linear(12, 12)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(12, 3))


def _tied() -> nn.Module:
    net = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
    linear(net[2]).weight = linear(net[0]).weight
    return net


def _tied_view() -> nn.Module:
    net = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
    linear(net[2]).weight.data = linear(net[0]).weight.data.T
    return net


LEARNING, FIXED = ("mono_forward", "local", "dfa"), ("cafo", "random_features")
for _trainers, _expected in ((LEARNING, REFUSED), (FIXED, RIGHT_OR_REFUSED)):
    solved_cases(
        registry, _trainers, "mlp with batch norm used twice", (12,), _reused_norm, _expected, mentions="1.*4"
    )
    solved_cases(
        registry,
        _trainers,
        "mlp with a linear layer used twice",
        (12,),
        _reused_linear,
        _expected,
        mentions="0.*2",
        at_least=0.6,
    )
    solved_cases(
        registry, _trainers, "mlp with tied weights", (12,), _tied, _expected, mentions="0.*2", at_least=0.6
    )
solved_cases(
    registry, ("mono_forward",), "mlp with weights that share memory", (12,), _tied_view, REFUSED_OR_WARNED
)
solved_cases(
    registry, ("backprop",), "mlp with a linear layer used twice", (12,), _reused_linear, RIGHT_OR_REFUSED
)
solved_cases(registry, ("backprop",), "mlp with tied weights", (12,), _tied, RIGHT_OR_REFUSED)


@registry.add("localize", "mlp that uses one activation object twice", "scores of the cascade")
def localized_reused(watch: Watch) -> str | None:
    net = row(_reused_activation())
    s = samples(12)
    cascade = bpfree.localize(net)
    trainer = trainer_of("mono_forward", cascade, watch)
    trainer.build((12,), 3)
    with torch.no_grad():
        same = torch.allclose(cascade.eval()(s.x), net(s.x), atol=1e-5)
    return None if same else "the cascade computes something else"


def cases() -> list[Case]:
    """All cases."""
    return registry.all
