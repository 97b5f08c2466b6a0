"""Memory layouts and types of parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.robustness import _by_hand as hand
from benchmarks.robustness import _nets as nets
from benchmarks.robustness._case import (
    ANY,
    REFUSED,
    RIGHT_OR_REFUSED,
    RIGHT_OR_WARNED,
    Case,
    Cases,
)
from benchmarks.robustness._compare import (
    as_by_hand,
    learns,
    row,
    solves,
    trainer_of,
)
from benchmarks.robustness._nets import linear
from benchmarks.robustness._samples import samples
from benchmarks.robustness._verdict import Watch

registry = Cases()


def _with_layout(change: Callable[[Tensor], Tensor]) -> Callable[[], hand.Net]:
    """An MLP whose hidden layers have the same weights in another memory layout."""

    def made() -> hand.Net:
        net = nets.mlp()
        for layer in (linear(net.layers[1]), linear(net.layers[3])):
            layer.weight = nn.Parameter(change(layer.weight.detach()))
        return net

    return made


def _gaps(weight: Tensor) -> Tensor:
    wide = torch.zeros(len(weight), 2 * weight.shape[1])
    wide[:, ::2] = weight
    return wide[:, ::2]


_gapped, _transposed = _with_layout(_gaps), _with_layout(lambda weight: weight.T.contiguous().T)


def _expanded() -> nn.Module:
    net = row(nets.mlp())
    linear(net[1]).weight = nn.Parameter(torch.full((1, 1), 0.1).expand(16, 12))
    return net


for _trainer in ("mono_forward", "backprop", "dfa", "cafo"):
    for _text, _make in (("views with gaps", _gapped), ("transposed", _transposed)):

        @registry.add(_trainer, "mlp", f"parameters: {_text}", RIGHT_OR_WARNED)
        def laid(watch: Watch, trainer: str = _trainer, make: Callable[[], hand.Net] = _make) -> str | None:
            s = samples(12)
            return as_by_hand(watch, trainer, nets.mlp, s.data, s, model=row(make()))


for _text, _make in (("views with gaps", _gapped), ("transposed", _transposed)):
    for _optimizer in ("adam", "sgd"):

        @registry.add(
            "mono_forward", "mlp", f"parameters: {_text}, analytic gradients, {_optimizer}", RIGHT_OR_WARNED
        )
        def laid_analytic(
            watch: Watch, make: Callable[[], hand.Net] = _make, optimizer: str = _optimizer
        ) -> str | None:
            s = samples(12)
            plain, odd = (
                trainer_of(
                    "mono_forward", row(net), Watch(), gradients="analytic", optimizer=optimizer, lr=0.01
                )
                for net in (nets.mlp(), make())
            )
            for trainer in (plain, odd):
                trainer.fit(s.data, epochs=5, batch_size=48)
            same = torch.allclose(plain.model(s.x), odd.model(s.x), atol=1e-3)
            return None if same else "other scores than with weights that lie densely"


for _trainer in ("mono_forward", "backprop"):

    @registry.add(_trainer, "mlp", "parameters: one value expanded", ANY)
    def laid_expanded(watch: Watch, trainer: str = _trainer) -> str | None:
        # A fused optimizer would write outside the memory of such parameters.
        s = samples(12)
        made = trainer_of(trainer, _expanded(), watch, lr=0.01)
        made.build((12,), 3)
        stepped = [p for o in made.optimizers.values() for group in o.param_groups for p in group["params"]]
        if any(0 in p.stride() for p in stepped):
            return "an optimizer is given a parameter whose elements share memory"
        made.fit(s.data, epochs=60)
        return learns(made, s.data, at_least=0.6)


def _double() -> nn.Module:
    return row(nets.mlp()).double()


for _trainer in ("mono_forward", "backprop", "cafo", "forward_forward", "counter_current"):

    @registry.add(_trainer, "float64 mlp", "float64 samples", RIGHT_OR_REFUSED | RIGHT_OR_WARNED)
    def double(watch: Watch, trainer: str = _trainer) -> str | None:
        s = samples(12)
        fit = {"epochs": 40}
        return solves(watch, trainer, _double(), (s.x.double(), s.y), s, at_least=0.3, fit=fit)


@registry.add("mono_forward", "float64 mlp", "float32 samples", RIGHT_OR_REFUSED)
def double_single(watch: Watch) -> str | None:
    s = samples(12)
    return solves(watch, "mono_forward", _double(), s.data, s, at_least=0.6)


for _kind in ("half", "bfloat16"):

    @registry.add("mono_forward", f"{_kind} mlp", "plain", ANY)
    def narrow(watch: Watch, kind: str = _kind) -> str | None:
        s = samples(12)
        net = getattr(row(nets.mlp()), kind)()
        return solves(watch, "mono_forward", net, s.data, s, at_least=0.6)


@registry.add("mono_forward", "mlp of which one layer is float64", "plain", REFUSED)
def mixed(watch: Watch) -> str | None:
    s, net = samples(12), row(nets.mlp())
    net[3].double()
    return solves(watch, "mono_forward", net, s.data, s)


def cases() -> list[Case]:
    """All cases."""
    return registry.all
