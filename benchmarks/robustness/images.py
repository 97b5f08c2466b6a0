"""Images: layouts, types, augmentation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.robustness import _nets as nets
from benchmarks.robustness._case import (
    REFUSED,
    RIGHT,
    Case,
    Cases,
    Outcome,
)
from benchmarks.robustness._compare import as_by_hand, consistent, row, trainer_of
from benchmarks.robustness._samples import Samples, samples
from benchmarks.robustness._verdict import Watch
from bpfree.data import TensorData

registry = Cases()


def _bytes(s: Samples) -> Tensor:
    return (s.x * 255).round().clamp(0, 255).byte()


FORMS: list[tuple[str, Callable[[Samples], Any], frozenset[Outcome]]] = [
    ("channels last", lambda s: (s.x.contiguous(memory_format=torch.channels_last), s.y), RIGHT),
    ("permuted view", lambda s: (s.x.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2), s.y), RIGHT),
    ("float64", lambda s: (s.x.double(), s.y), RIGHT),
    ("uint8", lambda s: (_bytes(s), s.y), RIGHT),
    ("uint8 channels last", lambda s: (_bytes(s).contiguous(memory_format=torch.channels_last), s.y), RIGHT),
    ("no channel axis", lambda s: (s.x[:, 0], s.y), REFUSED),
    ("channel axis last", lambda s: (s.x.permute(0, 2, 3, 1), s.y), REFUSED),
    ("int16", lambda s: ((s.x * 255).short(), s.y), REFUSED),
    ("uint16", lambda s: ((s.x * 255).to(torch.uint16), s.y), REFUSED),
    ("uint8 without a channel axis", lambda s: (_bytes(s)[:, 0], s.y), REFUSED),
]


def _seen(text: str, s: Samples) -> Samples:
    return Samples(_bytes(s).float() / 255, s.y, s.n_classes) if text.startswith("uint8") else s


for _text, _form, _expected in FORMS:
    for _trainer in ("mono_forward", "backprop"):

        def _attempt(
            watch: Watch, trainer: str = _trainer, text: str = _text, form: Callable[[Samples], Any] = _form
        ) -> str | None:
            s = samples(2, 8, 8)
            return as_by_hand(watch, trainer, lambda: nets.conv2d(2), form(s), _seen(text, s))

        if _trainer == "mono_forward" or _text in ("channels last", "uint8"):
            registry.add(_trainer, "conv2d", _text, _expected)(_attempt)


@registry.add("backprop", "conv2d", "augmented, predict as it is")
def augmented(watch: Watch) -> str | None:
    s = samples(1, 8, 8)
    data = TensorData(s.x, s.y, 3, augment=("crop", "flip"))
    made = trainer_of("backprop", row(nets.conv2d()), watch, lr=0.02)
    made.fit(data, epochs=10)
    return consistent(made, s, data)


@registry.add("mono_forward", "mlp", "augmented table", REFUSED)
def augmented_table(watch: Watch) -> str | None:
    s = samples(12)
    made = trainer_of("mono_forward", row(nets.mlp()), watch)
    made.fit(TensorData(s.x, s.y, 3, augment=("flip",)), epochs=1)
    return "accepted"


def cases() -> list[Case]:
    """All cases."""
    return registry.all
