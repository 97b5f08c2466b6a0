"""Optimizers, precision, layouts of maps, single steps."""

from __future__ import annotations

import copy

import torch
from torch import nn

from benchmarks.robustness import _by_hand as hand
from benchmarks.robustness import _nets as nets
from benchmarks.robustness._case import (
    RIGHT,
    RIGHT_OR_REFUSED,
    RIGHT_OR_WARNED,
    Case,
    Cases,
)
from benchmarks.robustness._compare import (
    MakeNet,
    as_by_hand,
    learns,
    rates,
    row,
    solves,
    trainer_of,
    uses_differ,
)
from benchmarks.robustness._samples import blank_margin, samples
from benchmarks.robustness._verdict import Watch

registry = Cases()


@registry.add("mono_forward", "mlp", "optimizer replaced before fit", RIGHT_OR_REFUSED | RIGHT_OR_WARNED)
def own_optimizer(watch: Watch) -> str | None:
    s, net = samples(12), row(nets.mlp())
    trainer = trainer_of("mono_forward", net, watch)
    trainer.build((12,), 3)
    for name, block in zip(trainer.optimizers, trainer.cascade.units, strict=True):
        trainer.optimizers[name] = block.optimizer = torch.optim.SGD(block.parameters(), lr=1e-12)
    before = copy.deepcopy(net.state_dict())
    trainer.fit(s.data, epochs=3)
    moved = max((net.state_dict()[k] - v).abs().max().item() for k, v in before.items())
    return None if moved < 1e-9 else f"weights moved by {moved:.3g} under an optimizer with lr = 1e-12"


@registry.add(
    "mono_forward", "mlp", "lr of an optimizer changed before fit", RIGHT_OR_REFUSED | RIGHT_OR_WARNED
)
def own_rate(watch: Watch) -> str | None:
    s, net = samples(12), row(nets.mlp())
    trainer = trainer_of("mono_forward", net, watch)
    trainer.build((12,), 3)
    for optimizer in trainer.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = 1e-12
    before = copy.deepcopy(net.state_dict())
    trainer.fit(s.data, epochs=3)
    moved = max((net.state_dict()[k] - v).abs().max().item() for k, v in before.items())
    return None if moved < 1e-9 else f"weights moved by {moved:.3g} with lr = 1e-12"


@registry.add("mono_forward", "mlp", "lr_schedule cooldown, 3 epochs")
def cooldown(watch: Watch) -> str | None:
    s = samples(12)
    trainer = trainer_of("mono_forward", row(nets.mlp()), watch, lr_schedule="cooldown", lr=0.01)
    history = trainer.fit(s.data, epochs=3, batch_size=48)
    used = [row["lr"] for row in history.rows]
    return None if max(used) <= 1.0 and used == sorted(used, reverse=True) else f"rates rise: {used}"


for _precision in ("bfloat16",):

    @registry.add("mono_forward", "mlp", "bfloat16")
    def low_precision(watch: Watch) -> str | None:
        s = samples(12)
        return solves(watch, "mono_forward", row(nets.mlp()), s.data, s, precision="bfloat16")

    @registry.add("mono_forward", "conv3d", "bfloat16")
    def low_precision_3d(watch: Watch) -> str | None:
        s = samples(1, 4, 4, 4)
        return solves(watch, "mono_forward", row(nets.conv3d()), s.data, s, precision="bfloat16")


def _channels_last() -> None:
    for trainer in ("mono_forward", "backprop", "dfa"):
        for name in ("conv1d", "conv2d", "conv3d"):
            make, shape = nets.NETS[name]

            def attempt(
                watch: Watch, trainer: str = trainer, make: MakeNet = make, shape: tuple[int, ...] = shape
            ) -> str | None:
                s = samples(*shape)
                return as_by_hand(watch, trainer, make, s.data, s, channels_last=True)

            if trainer == "mono_forward" or name == "conv2d":
                registry.add(trainer, name, "channels_last", RIGHT_OR_REFUSED)(attempt)


_channels_last()


@registry.add("mono_forward", "mlp", "trained twice goes on")
def twice(watch: Watch) -> str | None:
    s = samples(12)
    trainer = trainer_of("mono_forward", row(nets.mlp()), watch, lr=rates("mono_forward"))
    trainer.fit(s.data, epochs=20)
    trainer.fit(s.data, epochs=20)
    return learns(trainer, s.data)


@registry.add("mono_forward", "mlp", "step without a number, dropout", RIGHT)
def same_mask(watch: Watch) -> str | None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(12, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3)
    )
    trainer = trainer_of("mono_forward", net, watch, lr=1e-12)
    trainer.build((12,), 3)
    s = samples(12)
    first, second = (trainer.step(s.x, s.y)[0].item() for _ in range(2))
    return "two steps drew one mask" if first == second else None


@registry.add("forward_forward", "mlp", "step without a number, negatives", RIGHT_OR_WARNED)
def same_negatives(watch: Watch) -> str | None:
    s = blank_margin(samples(1, 8, 8))
    trainer = trainer_of("forward_forward", row(nets.mlp(64)), watch, lr=1e-12, peer_weight=0.0)
    trainer.build((1, 8, 8), 3)
    first, second = (trainer.step(s.x, s.y)[0].item() for _ in range(2))
    return "two steps drew the same negatives" if abs(first - second) < 1e-9 else None


@registry.add("mono_forward", "mlp", "steps follow the loop by hand")
def steps(watch: Watch) -> str | None:
    s = samples(12)
    trainer = trainer_of("mono_forward", row(nets.mlp()), watch, lr=0.01)
    trainer.build((12,), 3)
    for _ in range(5):
        trainer.step(s.x, s.y)
    by_hand = hand.mono_forward(nets.mlp(), watch.first, s.x, s.y, 5, 0.01)
    return uses_differ(trainer, by_hand.scores, s.data, s)


@registry.add("mono_forward", "mlp", "step with a batch of one")
def step_of_one(watch: Watch) -> str | None:
    s = samples(12, n=1)
    trainer = trainer_of("mono_forward", row(nets.mlp()), watch, lr=0.01)
    trainer.build((12,), 3)
    trainer.step(s.x, s.y)
    by_hand = hand.mono_forward(nets.mlp(), watch.first, s.x, s.y, 1, 0.01)
    one = type(s)(s.x, s.y, 3)
    return uses_differ(trainer, by_hand.scores, one.data, one)


def cases() -> list[Case]:
    """All cases."""
    return registry.all
