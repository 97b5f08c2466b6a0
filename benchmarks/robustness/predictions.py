"""Types of the samples for `predict`, and calls before training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.robustness import _nets as nets
from benchmarks.robustness._case import (
    REFUSED,
    RIGHT,
    RIGHT_OR_REFUSED,
    Case,
    Cases,
    Outcome,
)
from benchmarks.robustness._compare import row, trainer_of
from benchmarks.robustness._samples import Samples, samples
from benchmarks.robustness._verdict import Watch

registry = Cases()


PREDICTED: list[tuple[str, Callable[[Samples], Any], frozenset[Outcome]]] = [
    ("numpy", lambda s: s.x.numpy(), RIGHT_OR_REFUSED),
    ("float64", lambda s: s.x.double(), RIGHT),
    ("float16", lambda s: s.x.half(), RIGHT),
    ("requires grad", lambda s: s.x.clone().requires_grad_(), RIGHT),
    ("expanded", lambda s: s.x[:1].expand(48, -1), RIGHT),
    ("view with gaps", lambda s: s.x.repeat_interleave(2, 0)[::2], RIGHT),
    ("TensorData", lambda s: s.data, RIGHT),
    ("pair", lambda s: s.pair, RIGHT_OR_REFUSED),
    ("int64", lambda s: s.x.long(), REFUSED),
    ("one sample without its axis", lambda s: s.x[0], REFUSED),
    ("no sample", lambda s: s.x[:0], RIGHT_OR_REFUSED),
    ("list of lists", lambda s: s.x.tolist(), RIGHT_OR_REFUSED),
    ("NaN", lambda s: s.x * float("nan"), REFUSED),
    ("None", lambda s: None, REFUSED),
    ("another width", lambda s: s.x[:, :5], REFUSED),
    ("sparse", lambda s: s.x.to_sparse(), RIGHT_OR_REFUSED),
]

for _text, _form, _expected in PREDICTED:

    @registry.add("mono_forward", "mlp", f"predict: {_text}", _expected)
    def predicted(watch: Watch, form: Callable[[Samples], Any] = _form) -> str | None:
        s = samples(12)
        made = trainer_of("mono_forward", row(nets.mlp()), watch, lr=0.01)
        made.fit(s.data, epochs=5)
        watch.end_training(made.net)
        x_given = form(s)
        answer = made.predict(x_given)
        x = x_given.float() if isinstance(x_given, Tensor) and not x_given.is_sparse else s.x
        with torch.no_grad():
            expected = made.model.eval()(x).argmax(1) if len(x) else torch.zeros(0, dtype=torch.long)
        return None if torch.equal(answer, expected) else f"{answer[:5]} for {expected[:5]}"


for _use in ("predict", "evaluate", "save", "model"):

    @registry.add("mono_forward", "mlp", f"{_use} before fit", REFUSED)
    def before_fit(watch: Watch, use: str = _use) -> str | None:
        s = samples(12)
        made = trainer_of("mono_forward", row(nets.mlp()), watch)
        argument = {"predict": (s.x,), "evaluate": (s.data,), "save": ("/tmp/never",), "model": ()}[use]
        value = getattr(made, use)
        if use != "model":
            value(*argument)
        return "accepted"


@registry.add("mono_forward", "mlp", "the trained model leaves evaluation mode to its user")
def mode(watch: Watch) -> str | None:
    s = samples(12)
    net = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))
    made = trainer_of("mono_forward", net, watch, lr=0.01)
    made.fit(s.data, epochs=20)
    made.predict(s.x)
    a, b = made.predict(s.x), made.predict(s.x)
    with torch.no_grad():
        c = made.model(s.x).argmax(1)
    return None if torch.equal(a, b) and torch.equal(a, c) else "predictions are drawn anew at each call"


def cases() -> list[Case]:
    """All cases."""
    return registry.all
