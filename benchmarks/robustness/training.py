"""Ordinary networks by every trainer, against loops by hand and least squares."""

from __future__ import annotations

import torch

from benchmarks.robustness import _by_hand as hand
from benchmarks.robustness import _nets as nets
from benchmarks.robustness._case import (
    RIGHT_OR_REFUSED,
    RIGHT_OR_WARNED,
    Case,
    Cases,
)
from benchmarks.robustness._compare import (
    MakeNet,
    as_by_hand,
    learns,
    row,
    trainer_of,
    uses_differ,
)
from benchmarks.robustness._nets import linear
from benchmarks.robustness._samples import samples
from benchmarks.robustness._verdict import Watch

registry = Cases()


#: Trainers with a loop by hand for these networks.
ON = {
    "backprop": list(nets.NETS),
    "backprop_ds": ["mlp", "conv1d", "conv2d", "conv3d"],
    "mf_joint": ["mlp", "conv1d", "conv2d", "conv3d"],
    "mono_forward": list(nets.NETS),
    "local": ["mlp", "conv1d", "conv3d"],
    "random_features": ["mlp", "conv1d", "conv2d", "conv3d"],
    "dfa": ["mlp", "mlp of one hidden layer", "conv1d", "conv2d", "conv3d"],
    "cafo": ["mlp", "conv1d", "conv2d", "conv3d"],
    "counter_current": ["mlp", "mlp of one hidden layer", "mlp of three hidden layers"],
}


def _by_every_trainer() -> None:
    for trainer, names in ON.items():
        for name in names:
            make, shape = nets.NETS[name]

            def attempt(
                watch: Watch, trainer: str = trainer, make: MakeNet = make, shape: tuple[int, ...] = shape
            ) -> str | None:
                s = samples(*shape)
                return as_by_hand(watch, trainer, make, s.data, s)

            registry.add(trainer, name, "plain")(attempt)


def _closed_form() -> None:
    for name in ("mlp", "conv1d", "conv2d", "conv3d"):
        make, shape = nets.NETS[name]

        def attempt(watch: Watch, make: MakeNet = make, shape: tuple[int, ...] = shape) -> str | None:
            s = samples(*shape, noise=0.6)
            trainer = trainer_of("cafo", row(make()), watch, predictor="closed_form", lam=[1e-2])
            trainer.fit(s.pair, batch_size=7)
            by_hand = hand.cafo_closed_form(make(), s.x, s.y, 3, 1e-2)
            return uses_differ(trainer, by_hand.scores, s.pair, s)

        registry.add("cafo", name, "closed form against least squares")(attempt)


_by_every_trainer()
_closed_form()


@registry.add("cafo", "mlp with dead units", "closed form")
def dead_units(watch: Watch) -> str | None:
    def make() -> hand.Net:
        net = nets.mlp()
        with torch.no_grad():
            linear(net.layers[1]).weight[:5] = 0
            linear(net.layers[1]).bias[:5] = -1
        return net

    s = samples(12)
    trainer = trainer_of("cafo", row(make()), watch, predictor="closed_form", lam=[1e-2])
    trainer.fit(s.pair)
    return uses_differ(trainer, hand.cafo_closed_form(make(), s.x, s.y, 3, 1e-2).scores, s.pair, s)


@registry.add("cafo", "mlp whose every unit is dead", "closed form", RIGHT_OR_REFUSED | RIGHT_OR_WARNED)
def all_dead(watch: Watch) -> str | None:
    net = nets.mlp()
    with torch.no_grad():
        linear(net.layers[1]).weight.zero_()
        linear(net.layers[1]).bias.fill_(-1)
    s = samples(12)
    trainer = trainer_of("cafo", row(net), watch, predictor="closed_form")
    trainer.fit(s.pair)
    return None if trainer.evaluate(s.pair)["accuracy"] <= 0.5 else "accuracy of dead units above chance"


@registry.add("cafo", "conv2d with dead channels", "closed form, default penalties and validation")
def dead_channels(watch: Watch) -> str | None:
    def make() -> hand.Net:
        net = nets.conv2d()
        with torch.no_grad():
            net.layers[0].get_parameter("weight")[:2] = 0
            net.layers[0].get_parameter("bias")[:2] = -1
        return net

    s, v = samples(1, 8, 8), samples(1, 8, 8, seed=5)
    trainer = trainer_of("cafo", row(make()), watch, predictor="closed_form")
    trainer.fit(s.pair, v.pair)
    return learns(trainer, s.pair)


def cases() -> list[Case]:
    """All cases."""
    return registry.all
