"""Cuts of networks, the declared level of locality, and networks that are already cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import bpfree
from benchmarks.robustness import _by_hand as hand
from benchmarks.robustness import _nets as nets
from benchmarks.robustness._case import (
    REFUSED,
    REFUSED_OR_WARNED,
    RIGHT_OR_REFUSED,
    RIGHT_OR_WARNED,
    Case,
    Cases,
)
from benchmarks.robustness._compare import (
    as_by_hand,
    row,
    solves,
    trainer_of,
)
from benchmarks.robustness._samples import samples
from benchmarks.robustness._verdict import Watch

registry = Cases()


def _level(
    name: str, net: Callable[[], nn.Module], shape: tuple[int, ...], blocks: int, level: str, cut: Any
) -> None:
    for trainer in ("mono_forward", "forward_forward"):
        # A label cannot be concatenated to the input of a recurrent layer.
        refused = trainer == "forward_forward" and "LSTM" in name

        @registry.add(
            trainer, name, f"cut = {cut!r}, declared level", REFUSED if refused else RIGHT_OR_WARNED
        )
        def declared(watch: Watch, trainer: str = trainer) -> str | None:
            torch.manual_seed(3)
            s = samples(*shape)
            made = trainer_of(trainer, net(), watch, cut=cut)
            made.build_for(s.data)
            got = len(made.cascade.units)
            if got != blocks:
                return f"{got} blocks, expected {blocks}"
            return None if made.locality in level else f"declared {made.locality}, expected {level}"


_level("conv1d", lambda: row(nets.conv1d()), (1, 12), 2, "L2", "pool")
_level("conv2d", lambda: row(nets.conv2d()), (1, 8, 8), 2, "L2", "pool")
_level(
    "conv3d",
    lambda: nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(2),
        nn.Conv3d(4, 5, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(40, 3),
    ),
    (1, 4, 4, 4),
    2,
    "L2",
    "pool",
)
_level("mlp", lambda: row(nets.mlp(hidden=(16, 16, 16, 16))), (12,), 2, "L1", 2)
_level("mlp", lambda: row(nets.mlp(hidden=(16, 16))), (12,), 1, "L0", 1)
_level("mlp of one hidden layer", lambda: row(nets.mlp(hidden=(16,))), (12,), 1, "L0 or L2", "weight")
_level(
    "LSTM of two layers in one module",
    lambda: nn.Sequential(nets.LastStep(nn.LSTM(4, 8, 2, batch_first=True)), nn.Linear(8, 3)),
    (6, 4),
    1,
    "L0",
    "weight",
)
_level(
    "two LSTM modules",
    lambda: nn.Sequential(
        nets.Steps(nn.LSTM(4, 8, 2, batch_first=True)),
        nets.LastStep(nn.LSTM(8, 8, 2, batch_first=True)),
        nn.Linear(8, 3),
    ),
    (6, 4),
    2,
    "L1",
    "weight",
)


for _text, _settings in (
    ("head_pool", {"head_pool": 1}),
    ("cut", {"cut": "pool"}),
    ("cut by number", {"cut": 1}),
):

    @registry.add(
        "mono_forward", "localized conv2d", f"setting that comes too late: {_text}", REFUSED_OR_WARNED
    )
    def late(watch: Watch, settings: dict[str, Any] = _settings) -> str | None:
        s = samples(1, 8, 8)
        made = trainer_of("mono_forward", bpfree.localize(row(nets.conv2d())), watch, **settings)
        made.fit(s.data, epochs=1)
        return "the setting was ignored"


LATE: list[tuple[str, dict[str, Any]]] = [
    ("loss", {"loss": "sparsemax"}),
    ("loss_options", {"loss_options": {"bias": True}}),
    ("output", {"output": "apart"}),
]
for _text, _late in LATE:

    @registry.add("local", "localized mlp", f"setting that comes too late: {_text}", REFUSED_OR_WARNED)
    def late_local(watch: Watch, settings: dict[str, Any] = _late) -> str | None:
        s = samples(12)
        made = trainer_of("local", bpfree.localize(row(nets.mlp())), watch, **settings)
        made.fit(s.data, epochs=1)
        return "the setting was ignored"


for _trainer in sorted(set(hand.LOOPS) - {"mono_forward", "local"} | {"forward_forward"}):

    @registry.add(_trainer, "localized mlp", "plain", RIGHT_OR_REFUSED)
    def cut_already(watch: Watch, trainer: str = _trainer) -> str | None:
        s = samples(12)
        return solves(watch, trainer, bpfree.localize(row(nets.mlp())), s.data, s)


for _trainer in ("mono_forward", "local"):

    @registry.add(_trainer, "localized mlp", "plain")
    def localized(watch: Watch, trainer: str = _trainer) -> str | None:
        s = samples(12)
        return as_by_hand(watch, trainer, nets.mlp, s.data, s, model=bpfree.localize(row(nets.mlp())))


@registry.add("mono_forward", "mlp", "trained by two trainers one after another")
def handed_on(watch: Watch) -> str | None:
    s, net = samples(12), row(nets.mlp())
    trainer_of("backprop", net, Watch(), lr=0.01).fit(s.data, epochs=20)
    return solves(watch, "mono_forward", net, s.data, s)


@registry.add("mono_forward", "mlp", "another class count than at first", REFUSED)
def other_classes(watch: Watch) -> str | None:
    s = samples(12)
    made = trainer_of("mono_forward", row(nets.mlp()), watch)
    made.fit(s.data, epochs=1)
    watch.end_training(made.net)
    made.fit(bpfree.data.TensorData(s.x, s.y, 4), epochs=1)
    return "accepted"


def cases() -> list[Case]:
    """All cases."""
    return registry.all
