"""Values of settings, of trainers and of `fit`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import bpfree
from benchmarks.robustness import _nets as nets
from benchmarks.robustness._case import (
    REFUSED,
    RIGHT_OR_REFUSED,
    Case,
    Cases,
)
from benchmarks.robustness._compare import (
    ORDINARY,
    fitted,
    learns,
    row,
    trainer_of,
)
from benchmarks.robustness._samples import samples
from benchmarks.robustness._verdict import Watch
from bpfree.trainers import TRAINERS

registry = Cases()


NAN = float("nan")
TRAINER: list[tuple[str, dict[str, Any]]] = [
    ("lr = 0", {"lr": 0.0}),
    ("lr below 0", {"lr": -1.0}),
    ("lr = NaN", {"lr": NAN}),
    ("lr infinite", {"lr": float("inf")}),
    ("lr = '1e-3'", {"lr": "1e-3"}),
    ("lr a tensor", {"lr": torch.tensor(0.1)}),
    ("lr a list", {"lr": [0.1, 0.2]}),
    ("weight_decay = NaN", {"weight_decay": NAN}),
    ("weight_decay infinite", {"weight_decay": float("inf")}),
    ("optimizer = 'lion'", {"optimizer": "lion"}),
    ("an optimizer class", {"optimizer": torch.optim.Adam}),
    ("momentum = 1", {"optimizer": "sgd", "momentum": 1.0}),
    ("precision = 'float16'", {"precision": "float16"}),
    ("cut = 'layers'", {"cut": "layers"}),
    ("cut = 99", {"cut": 99}),
    ("cut = 0", {"cut": 0}),
    ("cut at no such module", {"cut": ["no.such"]}),
    ("cut = []", {"cut": []}),
    ("readout of no such block", {"readout": "block:9"}),
    ("head_pool = 0", {"head_pool": 0}),
    ("device = 'mps'", {"device": "mps"}),
    ("device = 'cuda:97'", {"device": "cuda:97"}),
    ("device = 'meta'", {"device": "meta"}),
    ("device = 'xpu'", {"device": "xpu"}),
    ("device = 3", {"device": 3}),
    ("device = 'tpu'", {"device": "tpu"}),
    ("seed = 0.5", {"seed": 0.5}),
    ("seed = 'a'", {"seed": "a"}),
    ("seed = None", {"seed": None}),
    ("schedule = 'random'", {"schedule": "random"}),
]
MAY_BE_RIGHT = {"lr infinite": REFUSED, "cut = []": RIGHT_OR_REFUSED, "lr a tensor": RIGHT_OR_REFUSED}
for _text, _settings in TRAINER:

    @registry.add("mono_forward", "mlp", _text, MAY_BE_RIGHT.get(_text, REFUSED))
    def setting(watch: Watch, settings: dict[str, Any] = _settings, text: str = _text) -> str | None:
        s = samples(12)
        made = trainer_of("mono_forward", row(nets.mlp()), watch, **({"lr": 0.01} | settings))
        made.fit(s.data, epochs=30, batch_size=16)
        return learns(made, s.data) if text in MAY_BE_RIGHT else "accepted"


FIT: list[tuple[str, dict[str, Any]]] = [
    ("epochs = 0", {"epochs": 0}),
    ("epochs = -1", {"epochs": -1}),
    ("epochs = 1.5", {"epochs": 1.5}),
    ("epochs = '3'", {"epochs": "3"}),
    ("epochs = True", {"epochs": True}),
    ("batch_size = 0", {"batch_size": 0}),
    ("batch_size = None", {"batch_size": None}),
    ("batch_size = 16.0", {"batch_size": 16.0}),
    ("patience without validation", {"patience": 3}),
    ("patience = 0", {"patience": 0}),
    ("min_delta = NaN", {"min_delta": NAN}),
    ("no such argument", {"callbacks": []}),
    ("checkpoint = a folder", {"checkpoint": Path("/tmp")}),
    ("cache_dir = a file", {"cache_dir": Path(__file__)}),
    ("hooks = a function", {"hooks": print}),
    ("validation of another width", {"validation": (torch.rand(6, 5), torch.arange(6) % 3)}),
    ("validation of more classes", {"validation": (torch.rand(6, 12), torch.arange(6))}),
    ("validation with NaN", {"validation": (torch.full((6, 12), NAN), torch.arange(6) % 3)}),
    ("validation empty", {"validation": (torch.rand(0, 12), torch.arange(0))}),
    ("validation = a number", {"validation": 0.2}),
]
for _text, _fit in FIT:

    @registry.add("mono_forward", "mlp", f"fit: {_text}", REFUSED)
    def fit_setting(watch: Watch, fit: dict[str, Any] = _fit) -> str | None:
        made = trainer_of("mono_forward", row(nets.mlp()), watch)
        made.fit(samples(12).data, **({"epochs": 1} | fit))
        return "accepted"


@registry.add("mono_forward", "mlp", "numpy integer as epochs", RIGHT_OR_REFUSED)
def numpy_settings(watch: Watch) -> str | None:
    import numpy as np

    s = samples(12)
    made = trainer_of("mono_forward", row(nets.mlp()), watch, lr=0.01)
    made.fit(s.data, epochs=np.int64(30), batch_size=16)
    return learns(made, s.data)


@registry.add("mono_forward", "mlp", "validation that lacks a class")
def validation_lacks(watch: Watch) -> str | None:
    s = samples(12)
    v = samples(12, seed=4)
    made = trainer_of("mono_forward", row(nets.mlp()), watch, lr=0.01)
    history = made.fit(s.data, (v.x[v.y < 2], v.y[v.y < 2]), epochs=30, restore_best=False)
    reported = next(iter(history.rows[-1]["validation"].values()))
    predicted_share = float((made.predict(v.x[v.y < 2]) == v.y[v.y < 2]).float().mean())
    return (
        None
        if abs(reported - predicted_share) < 1e-6
        else f"validation {reported:.3f}, predict {predicted_share:.3f}"
    )


@registry.add("mono_forward", "mlp", "global random state after training")
def random_state(watch: Watch) -> str | None:
    s = samples(12)
    made = trainer_of("mono_forward", row(nets.mlp()), watch, lr=0.01)
    before = torch.get_rng_state()
    made.fit(s.data, s.data, epochs=20)
    made.predict(s.x)
    return None if torch.equal(before, torch.get_rng_state()) else "torch's global generator has moved"


for _trainer in ORDINARY:

    @registry.add(_trainer, "mlp", "same seed, same weights")
    def repeated(watch: Watch, trainer: str = _trainer) -> str | None:
        a, b = fitted(watch, trainer), fitted(Watch(), trainer)
        same = all(torch.equal(p, q) for p, q in zip(a.net.parameters(), b.net.parameters(), strict=True))
        return None if same else "two runs differ"


for _trainer, _kind in sorted(TRAINERS.items()):

    @registry.add(_trainer, "no network", "net = 'mlp'", REFUSED)
    def no_net(watch: Watch, kind: type[bpfree.Trainer] = _kind) -> str | None:
        kind("mlp")  # type: ignore[arg-type]
        return "accepted"

    @registry.add(_trainer, "mlp", "a setting that there is not", REFUSED)
    def unknown_setting(watch: Watch, kind: type[bpfree.Trainer] = _kind) -> str | None:
        kind(row(nets.mlp()), learning_rate=0.1)
        return "accepted"


def cases() -> list[Case]:
    """All cases."""
    return registry.all
