"""Layers of many kinds: those that only scale, convolutions, recurrent ones, attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

import bpfree
from benchmarks.robustness import _by_hand as hand
from benchmarks.robustness import _nets as nets
from benchmarks.robustness._case import (
    ANY,
    REFUSED,
    RIGHT,
    RIGHT_OR_REFUSED,
    RIGHT_OR_WARNED,
    Case,
    Cases,
)
from benchmarks.robustness._compare import learns, row, trainer_of
from benchmarks.robustness._families import by_hand_cases, seeded, solved_cases
from benchmarks.robustness._samples import samples
from benchmarks.robustness._verdict import Watch

registry = Cases()


LOCAL = ("mono_forward", "local", "dfa", "cafo", "random_features")
TWO = ("mono_forward", "backprop")


SCALING: dict[str, Callable[[], nn.Module]] = {
    "PReLU": nn.PReLU,
    "PReLU of each unit": lambda: nn.PReLU(16),
    "RMSNorm": lambda: nn.RMSNorm(16),
    "LayerNorm": lambda: nn.LayerNorm(16),
    "gain": lambda: nets.Gain(16),
    "batch norm": lambda: nn.BatchNorm1d(16),
    "GroupNorm": lambda: nn.GroupNorm(4, 16),
}


def _scaled(layer: Callable[[], nn.Module]) -> Callable[[], hand.Net]:
    """An MLP with the layer after the first activation, or instead of it."""

    def made() -> hand.Net:
        torch.manual_seed(3)
        scaling = layer()
        active = [scaling] if isinstance(scaling, nn.PReLU) else [nn.ReLU(), scaling]
        upper = [nn.Linear(16, 14), nn.ReLU(), nn.Linear(14, 3)]
        return nets.of([nn.Linear(12, 16), *active, *upper], [0, 1 + len(active), 3 + len(active)])

    return made


for _name, _layer in SCALING.items():
    _trainers = LOCAL if _name == "PReLU" else ("mono_forward",)
    by_hand_cases(registry, _trainers, f"mlp with {_name} behind the first layer", (12,), _scaled(_layer))

by_hand_cases(
    registry,
    ("mono_forward", "dfa"),
    "conv2d with affine InstanceNorm",
    (1, 8, 8),
    seeded(
        lambda: [
            nn.Conv2d(1, 4, 3),
            nn.InstanceNorm2d(4, affine=True),
            nn.ReLU(),
            nn.Conv2d(4, 5, 3),
            nn.PReLU(5),
            nn.Flatten(),
            nn.Linear(80, 3),
        ],
        0,
        3,
        6,
    ),
)
by_hand_cases(
    registry,
    ("mono_forward",),
    "mlp with a scaling layer in front",
    (12,),
    seeded(
        lambda: [
            nn.LayerNorm(12),
            nn.Linear(12, 16),
            nn.ReLU(),
            nn.Linear(16, 8),
            nn.ReLU(),
            nn.Linear(8, 3),
        ],
        0,
        3,
        5,
    ),
)
by_hand_cases(
    registry,
    ("mono_forward",),
    "mlp with a scaling layer behind the output",
    (12,),
    seeded(
        lambda: [nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3), nets.Gain(3)],
        0,
        2,
        4,
    ),
    RIGHT_OR_REFUSED,
)


by_hand_cases(
    registry,
    TWO,
    "conv1d without pooling, dilated",
    (2, 12),
    seeded(
        lambda: [
            nn.Conv1d(2, 4, 3, dilation=2),
            nn.Tanh(),
            nn.Conv1d(4, 4, 3, groups=2),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(24, 3),
        ],
        0,
        2,
        5,
    ),
)
by_hand_cases(
    registry,
    ("mono_forward", "dfa"),
    "transposed convolution",
    (1, 8, 8),
    seeded(
        lambda: [
            nn.Conv2d(1, 4, 3, stride=2),
            nn.ReLU(),
            nn.ConvTranspose2d(4, 3, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(147, 3),
        ],
        0,
        2,
        5,
    ),
)
by_hand_cases(
    registry,
    (*LOCAL, "backprop"),
    "LSTM of two layers",
    (6, 4),
    seeded(
        lambda: [
            nets.Steps(nn.LSTM(4, 8, batch_first=True)),
            nets.LastStep(nn.LSTM(8, 8, batch_first=True)),
            nn.Linear(8, 3),
        ],
        0,
        1,
        2,
    ),
)
by_hand_cases(
    registry,
    ("mono_forward", "backprop", "cafo"),
    "GRU",
    (6, 4),
    seeded(lambda: [nets.LastStep(nn.GRU(4, 12, batch_first=True)), nn.Linear(12, 3)], 0, 1),
)
by_hand_cases(
    registry,
    ("mono_forward", "backprop", "dfa"),
    "transformer encoder layers",
    (5, 8),
    seeded(
        lambda: [
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
            nn.Flatten(),
            nn.Linear(40, 3),
        ],
        0,
        1,
        3,
    ),
    RIGHT_OR_WARNED,
)
by_hand_cases(
    registry,
    ("mono_forward", "backprop"),
    "residual blocks",
    (12,),
    seeded(
        lambda: [
            nn.Linear(12, 16),
            nn.ReLU(),
            nets.Residual(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))),
            nn.ReLU(),
            nn.Linear(16, 3),
        ],
        0,
        2,
        4,
    ),
)
by_hand_cases(
    registry,
    ("mono_forward", "dfa", "cafo", "backprop"),
    "linear layers over a sequence",
    (5, 8),
    seeded(
        lambda: [nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 6), nn.ReLU(), nn.Flatten(), nn.Linear(30, 3)],
        0,
        2,
        5,
    ),
)
solved_cases(
    registry,
    ("forward_forward",),
    "LSTM",
    (6, 4),
    lambda: nn.Sequential(nets.LastStep(nn.LSTM(4, 24, batch_first=True)), nn.Linear(24, 3)),
    ANY,
)
for _trainer in ("counter_current",):
    solved_cases(
        registry,
        (_trainer,),
        "conv2d with a hidden linear layer",
        (1, 8, 8),
        lambda: nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(96, 24),
            nn.ReLU(),
            nn.Linear(24, 3),
        ),
        RIGHT_OR_REFUSED,
        at_least=0.5,
    )
    solved_cases(registry, (_trainer,), "conv2d", (1, 8, 8), lambda: row(nets.conv2d()), at_least=0.5)
    solved_cases(
        registry, (_trainer,), "conv1d", (1, 12), lambda: row(nets.conv1d()), RIGHT_OR_REFUSED, at_least=0.5
    )
    solved_cases(
        registry,
        (_trainer,),
        "conv3d",
        (1, 4, 4, 4),
        lambda: row(nets.conv3d()),
        RIGHT_OR_REFUSED,
        at_least=0.5,
    )
    solved_cases(
        registry,
        (_trainer,),
        "linear layers over a sequence",
        (5, 8),
        lambda: nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Flatten(), nn.Linear(50, 3)),
        RIGHT_OR_REFUSED,
        at_least=0.5,
    )
    solved_cases(
        registry,
        (_trainer,),
        "conv2d with an even kernel",
        (1, 8, 8),
        lambda: nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 2), nn.ReLU(), nn.Flatten(), nn.Linear(200, 3)
        ),
        RIGHT_OR_REFUSED,
        at_least=0.5,
    )


def _as_module(make: Callable[[], hand.Net]) -> Callable[[], nn.Module]:
    return lambda: row(make())


for _name, _net, _shape in (
    ("conv1d", nets.conv1d, (1, 12)),
    ("conv2d", nets.conv2d, (1, 8, 8)),
    ("conv3d", nets.conv3d, (1, 4, 4, 4)),
):
    for _loss in ("predsim", "mean_goodness", "prototype_goodness", "sparsemax", "closed_form"):
        solved_cases(
            registry,
            ("local",),
            _name,
            _shape,
            _as_module(_net),
            RIGHT_OR_REFUSED if _name != "conv2d" else RIGHT,
            f"loss {_loss}",
            at_least=0.6,
            loss=_loss,
        )
for _loss in ("predsim", "mean_goodness", "prototype_goodness"):
    solved_cases(
        registry,
        ("local",),
        "LSTM of two layers",
        (6, 4),
        lambda: nn.Sequential(
            nets.Steps(nn.LSTM(4, 16, batch_first=True)),
            nets.LastStep(nn.LSTM(16, 16, batch_first=True)),
            nn.Linear(16, 3),
        ),
        RIGHT_OR_REFUSED,
        f"loss {_loss}",
        at_least=0.5,
        loss=_loss,
    )
solved_cases(
    registry,
    ("forward_forward",),
    "conv2d",
    (1, 8, 8),
    lambda: row(nets.conv2d()),
    RIGHT_OR_WARNED,
    at_least=0.5,
)
solved_cases(
    registry,
    ("forward_forward",),
    "conv1d",
    (1, 16),
    lambda: row(nets.conv1d(length=16)),
    RIGHT_OR_WARNED | REFUSED,
    at_least=0.5,
)


@registry.add("counter_current", "vgg8b", "one step", RIGHT_OR_REFUSED)
def vgg(watch: Watch) -> str | None:
    s = samples(3, 32, 32, n=6)
    made = trainer_of("counter_current", bpfree.nn.vgg((3, 32, 32), 3, width=0.1, hidden=32), watch, lr=0.1)
    made.fit(s.data, epochs=1)
    return learns(made, s.data, at_least=0.0)


def cases() -> list[Case]:
    """All cases."""
    return registry.all
