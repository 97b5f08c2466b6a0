"""Reparametrized, lazy, compiled, scripted and wrapped networks, and modules of users."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.utils.parametrizations as parametrizations
from torch import Tensor, nn
from torch.nn.utils import parametrize

import bpfree
from benchmarks.robustness import _by_hand as hand
from benchmarks.robustness import _nets as nets
from benchmarks.robustness._case import (
    ANY,
    REFUSED,
    RIGHT_OR_REFUSED,
    Case,
    Cases,
)
from benchmarks.robustness._compare import (
    as_by_hand,
    row,
)
from benchmarks.robustness._families import by_hand_cases, solved_cases
from benchmarks.robustness._samples import samples
from benchmarks.robustness._verdict import Watch
from bpfree import testing

registry = Cases()


LOCAL = ("mono_forward", "local", "dfa", "cafo", "random_features")
TWO = ("mono_forward", "backprop")


def _parametrized(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[], hand.Net]:
    def made() -> hand.Net:
        net = nets.mlp()
        net.layers = [wrap(m) if isinstance(m, nn.Linear) and k < 5 else m for k, m in enumerate(net.layers)]
        return net

    return made


class Symmetric(nn.Module):
    """The stored weight times two."""

    def forward(self, w: Tensor) -> Tensor:
        return 2 * w


def _doubled(m: nn.Module) -> nn.Module:
    parametrize.register_parametrization(m, "weight", Symmetric())
    return m


def _old_weight_norm(m: nn.Module) -> nn.Module:
    return nn.utils.weight_norm(m)


for _trainer in ("mono_forward", "backprop", "cafo"):
    by_hand_cases(
        registry, (_trainer,), "mlp with weight_norm", (12,), _parametrized(parametrizations.weight_norm)
    )
    by_hand_cases(
        registry, (_trainer,), "mlp with a parametrization of one's own", (12,), _parametrized(_doubled)
    )
by_hand_cases(
    registry,
    ("mono_forward",),
    "mlp with weight_norm of the older kind",
    (12,),
    _parametrized(_old_weight_norm),
)
solved_cases(
    registry,
    ("mono_forward", "backprop"),
    "mlp with spectral_norm",
    (12,),
    lambda: row(_parametrized(parametrizations.spectral_norm)()),
    at_least=0.6,
)
solved_cases(
    registry,
    ("mono_forward", "backprop"),
    "mlp with orthogonal weights",
    (12,),
    lambda: row(_parametrized(parametrizations.orthogonal)()),
    at_least=0.6,
)
for _name, _wrap in (
    ("weight_norm", parametrizations.weight_norm),
    ("spectral_norm", parametrizations.spectral_norm),
    ("a parametrization of one's own", _doubled),
):

    @registry.add("assert_locality", f"mlp with {_name}", "no false alarm")
    def proof(watch: Watch, wrap: Callable[[nn.Module], nn.Module] = _wrap) -> str | None:
        s = samples(12, n=16)

        def make(**settings: Any) -> bpfree.Trainer:
            return bpfree.MonoForward(row(_parametrized(wrap)()), progress=False, **settings)

        trainer = make()
        trainer.build((12,), 3)
        try:
            testing.assert_locality(trainer, s.x, s.y)
        except AssertionError as error:
            return f"false alarm: {str(error)[:200]}"
        return None


def _lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(14), nn.ReLU(), nn.LazyLinear(3))


solved_cases(registry, ("mono_forward", "backprop", "cafo"), "lazy mlp", (12,), _lazy, RIGHT_OR_REFUSED)


@registry.add("mono_forward", "mlp compiled by torch.compile", "eager backend", RIGHT_OR_REFUSED)
def compiled_net(watch: Watch) -> str | None:
    s = samples(12)
    net = torch.compile(row(nets.mlp()), backend="eager")
    return as_by_hand(watch, "mono_forward", nets.mlp, s.data, s, model=net)  # type: ignore[arg-type]


@registry.add("backprop", "mlp compiled by torch.compile", "eager backend", RIGHT_OR_REFUSED)
def compiled_backprop(watch: Watch) -> str | None:
    s = samples(12)
    net = torch.compile(row(nets.mlp()), backend="eager")
    return as_by_hand(watch, "backprop", nets.mlp, s.data, s, model=net)  # type: ignore[arg-type]


@registry.add("mono_forward", "mlp", "compile = 'eager'")
def compiled_blocks(watch: Watch) -> str | None:
    s = samples(12)
    return as_by_hand(watch, "mono_forward", nets.mlp, s.data, s, compile="eager")


@registry.add("mono_forward", "mlp", "compile = 'no such backend'", REFUSED)
def compiled_unknown(watch: Watch) -> str | None:
    s = samples(12)
    return as_by_hand(watch, "mono_forward", nets.mlp, s.data, s, compile="no_such_backend")


@registry.add("mono_forward", "scripted mlp", "plain", RIGHT_OR_REFUSED)
def scripted(watch: Watch) -> str | None:
    s = samples(12)
    return as_by_hand(watch, "mono_forward", nets.mlp, s.data, s, model=torch.jit.script(row(nets.mlp())))


@registry.add("mono_forward", "mlp in DataParallel", "plain", RIGHT_OR_REFUSED)
def parallel(watch: Watch) -> str | None:
    s = samples(12)
    return as_by_hand(watch, "mono_forward", nets.mlp, s.data, s, model=nn.DataParallel(row(nets.mlp())))


class UserModule(nn.Module):
    """A module of a user, whose forward runs its layers in a given order."""

    def __init__(self, order: Sequence[int] = (0, 1, 2, 3, 4, 5)) -> None:
        super().__init__()
        for k, layer in enumerate(nets.mlp(hidden=(12, 12)).layers):
            self.add_module(f"layer{k}", layer)
        self.order = tuple(order)

    def forward(self, x: Tensor) -> Tensor:
        for k in self.order:
            x = getattr(self, f"layer{k}")(x)
        return x


solved_cases(registry, TWO, "module of one's own", (12,), UserModule, RIGHT_OR_REFUSED)
solved_cases(
    registry,
    TWO,
    "module that runs its layers in another order",
    (12,),
    lambda: UserModule((0, 3, 4, 1, 2, 5)),
    RIGHT_OR_REFUSED,
)
solved_cases(
    registry, TWO, "module that skips a layer", (12,), lambda: UserModule((0, 1, 2, 5)), RIGHT_OR_REFUSED
)
solved_cases(
    registry,
    TWO,
    "nested Sequential",
    (12,),
    lambda: nn.Sequential(
        nn.Sequential(*list(row(nets.mlp()))[:3]), nn.Sequential(*list(row(nets.mlp()))[3:])
    ),
)
solved_cases(
    registry, ("mono_forward",), "one linear layer", (12,), lambda: nn.Sequential(nn.Linear(12, 3)), REFUSED
)
solved_cases(
    registry, ("mono_forward",), "linear layer outside a Sequential", (12,), lambda: nn.Linear(12, 3), REFUSED
)
solved_cases(registry, ("mono_forward",), "no layer", (12,), nn.Sequential, REFUSED)
solved_cases(
    registry, ("mono_forward",), "ModuleList", (12,), lambda: nn.ModuleList(nets.mlp().layers), REFUSED
)
solved_cases(
    registry,
    ("mono_forward",),
    "embedding in front",
    (12,),
    lambda: nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 3)),
    RIGHT_OR_REFUSED,
)
solved_cases(
    registry,
    ("mono_forward",),
    "mlp that ends in Softmax",
    (12,),
    lambda: nn.Sequential(*nets.mlp().layers, nn.Softmax(1)),
    ANY,
    at_least=0.5,
)
solved_cases(
    registry,
    ("mono_forward",),
    "mlp with as many outputs as classes and one more",
    (12,),
    lambda: row(nets.mlp(classes=4)),
    REFUSED,
)
solved_cases(
    registry, ("mono_forward",), "mlp with one output", (12,), lambda: row(nets.mlp(classes=1)), REFUSED
)
solved_cases(
    registry,
    ("mono_forward", "dfa"),
    "in-place activations",
    (12,),
    lambda: nn.Sequential(
        nn.Linear(12, 16), nn.ReLU(inplace=True), nn.Linear(16, 14), nn.ReLU(inplace=True), nn.Linear(14, 3)
    ),
)
solved_cases(
    registry,
    ("mono_forward",),
    "mlp with two outputs of a block",
    (12,),
    lambda: nn.Sequential(nn.LSTM(12, 8, batch_first=True), nn.Linear(8, 3)),
    REFUSED,
)


def cases() -> list[Case]:
    """All cases."""
    return registry.all
