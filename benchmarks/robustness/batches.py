"""Sizes of batches, normalization of a batch of one, scales of samples."""

from __future__ import annotations

import torch
from torch import nn

import bpfree
from benchmarks.robustness import _by_hand as hand
from benchmarks.robustness import _nets as nets
from benchmarks.robustness._case import (
    REFUSED,
    RIGHT_OR_REFUSED,
    RIGHT_OR_WARNED,
    Case,
    Cases,
)
from benchmarks.robustness._compare import (
    MakeNet,
    as_by_hand,
    row,
    solves,
    trainer_of,
)
from benchmarks.robustness._samples import samples
from benchmarks.robustness._verdict import Watch

registry = Cases()


LOOPED = sorted(set(hand.LOOPS) - {"counter_current"})


def _batches() -> None:
    for trainer in ("mono_forward", "backprop", "dfa"):
        for text, size in (("batches of one", 1), ("last batch of one", 47), ("batches of 5", 5)):

            def attempt(watch: Watch, trainer: str = trainer, size: int = size) -> str | None:
                s = samples(12)
                net = row(nets.mlp())
                return solves(
                    watch, trainer, net, s.data, s, fit={"batch_size": size, "epochs": 6 if size == 1 else 60}
                )

            registry.add(trainer, "mlp", text)(attempt)
    for trainer in LOOPED:

        def larger(watch: Watch, trainer: str = trainer) -> str | None:
            s = samples(12)
            return as_by_hand(watch, trainer, nets.mlp, s.data, s, fit={"batch_size": 1000})

        registry.add(trainer, "mlp", "batches larger than the data")(larger)


_batches()


def _normed(*layers: nn.Module) -> hand.Net:
    """A network with one block, and ReLU after the second layer."""
    return nets.of([*layers[:2], nn.ReLU(), *layers[2:]], [0, len(layers)])


NORMS: dict[str, tuple[MakeNet, tuple[int, ...]]] = {
    "BatchNorm1d": (lambda: _normed(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)), (12,)),
    "BatchNorm1d over time": (
        lambda: _normed(nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(40, 3)),
        (1, 12),
    ),
    "BatchNorm2d": (lambda: nets.conv2d(norm=True), (1, 8, 8)),
    "BatchNorm3d": (
        lambda: _normed(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.Flatten(), nn.Linear(32, 3)),
        (1, 4, 4, 4),
    ),
    "BatchNorm2d on maps of one pixel": (
        lambda: _normed(nn.Conv2d(1, 6, 8), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6, 3)),
        (1, 8, 8),
    ),
}


def _last_of_one() -> None:
    for name, (make, shape) in NORMS.items():
        for trainer in ("mono_forward", "backprop"):
            for text, n in (("last batch of one", 33), ("one sample", 1)):

                def attempt(
                    watch: Watch,
                    trainer: str = trainer,
                    make: MakeNet = make,
                    shape: tuple[int, ...] = shape,
                    n: int = n,
                ) -> str | None:
                    s = samples(*shape, n=n)
                    net = row(make())
                    at_least = 0.6 if n > 1 else 0.0
                    return solves(
                        watch,
                        trainer,
                        net,
                        bpfree.data.TensorData(s.x, s.y, 3),
                        s,
                        fit={"batch_size": 16},
                        at_least=at_least,
                    )

                if trainer == "mono_forward" or name in ("BatchNorm1d", "BatchNorm2d"):
                    registry.add(trainer, name, text, RIGHT_OR_REFUSED | RIGHT_OR_WARNED)(attempt)


_last_of_one()


@registry.add("cafo", "conv2d with batch norm", "last batch of one")
def cafo_last_of_one(watch: Watch) -> str | None:
    s = samples(1, 8, 8, n=33)
    return solves(watch, "cafo", row(nets.conv2d(norm=True)), s.data, s, fit={"batch_size": 16}, at_least=0.6)


@registry.add("mono_forward", "mlp", "one sample", RIGHT_OR_WARNED | REFUSED)
def one_sample(watch: Watch) -> str | None:
    s = samples(12, n=1)
    return as_by_hand(watch, "mono_forward", nets.mlp, bpfree.data.TensorData(s.x, s.y, 3), s)


def _scales() -> None:
    for trainer in ("mono_forward", "backprop", "cafo", "counter_current"):
        for text, factor in (("scaled by 1e-6", 1e-6), ("scaled by 1e3", 1e3)):

            def attempt(watch: Watch, trainer: str = trainer, factor: float = factor) -> str | None:
                s = samples(12)
                s = type(s)(s.x * factor, s.y, 3)
                return as_by_hand(watch, trainer, nets.mlp, s.data, s)

            registry.add(trainer, "mlp", text, RIGHT_OR_WARNED)(attempt)


_scales()


@registry.add("mono_forward", "mlp", "a feature that never varies")
def constant_feature(watch: Watch) -> str | None:
    s = samples(12)
    s.x[:, 4] = 0.7
    return as_by_hand(watch, "mono_forward", nets.mlp, s.data, s)


@registry.add("mono_forward", "mlp", "a feature that never varies, standardized", REFUSED)
def constant_standardized(watch: Watch) -> str | None:
    s = samples(12)
    s.x[:, 4] = 0.7
    data = bpfree.data.TensorData(s.x, s.y, 3, tuple(s.x.mean(0).tolist()), tuple(s.x.std(0).tolist()))
    return as_by_hand(watch, "mono_forward", nets.mlp, data, s)


@registry.add("mono_forward", "mlp", "scaled by 1e30", RIGHT_OR_WARNED | REFUSED)
def enormous(watch: Watch) -> str | None:
    s = samples(12)
    s = type(s)(s.x * 1e30, s.y, 3)
    trainer = trainer_of("mono_forward", row(nets.mlp()), watch)
    try:
        trainer.fit(s.data, epochs=2)
    except bpfree.Diverged:
        return None
    return None if torch.isfinite(trainer.model(s.x)).all() else "scores are not finite, and no word"


def cases() -> list[Case]:
    """All cases."""
    return registry.all
