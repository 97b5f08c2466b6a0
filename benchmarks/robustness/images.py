"""Images: layouts, types, standardization, augmentation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import bpfree
from benchmarks.robustness import _nets as nets
from benchmarks.robustness._case import (
    REFUSED,
    RIGHT,
    RIGHT_OR_REFUSED,
    RIGHT_OR_WARNED,
    Case,
    Cases,
    Outcome,
)
from benchmarks.robustness._compare import as_by_hand, consistent, rates, row, trainer_of
from benchmarks.robustness._judge import Watch
from benchmarks.robustness._samples import Samples, samples
from bpfree.data import TensorData

found = Cases()


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
            found.add(_trainer, "conv2d", _text, _expected)(_attempt)


# ---- standardization ---------------------------------------------------------------------------------------


def _standardized(s: Samples) -> TensorData:
    x = s.x.transpose(0, 1).flatten(1)
    return TensorData(s.x, s.y, s.n_classes, tuple(x.mean(1).tolist()), tuple(x.std(1).tolist()))


def _shifted(seed: int = 0) -> Samples:
    """Samples that lie far from zero, so that the standardization matters."""
    s = samples(12, noise=0.5, seed=seed)
    return Samples(5 + 3 * s.x, s.y, s.n_classes)


STANDARDIZED = ("mono_forward", "backprop", "dfa", "cafo", "counter_current", "random_features", "forward_forward")

for _trainer in STANDARDIZED:

    @found.add(_trainer, "mlp", "standardized, predict of raw samples", RIGHT_OR_WARNED)
    def raw(watch: Watch, trainer: str = _trainer) -> str | None:
        s = _shifted()
        data = _standardized(s)
        made = trainer_of(trainer, row(nets.mlp()), watch, lr=rates(trainer))
        made.fit(data, epochs=20)
        return consistent(made, s, data)


@found.add("mono_forward", "mlp", "standardized, by hand")
def by_hand(watch: Watch) -> str | None:
    s = _shifted()
    data = _standardized(s)
    seen = Samples((s.x - s.x.mean(0)) / s.x.std(0), s.y, 3)
    return as_by_hand(watch, "mono_forward", nets.mlp, data, seen)


@found.add("mono_forward", "mlp", "standardized, evaluate of a raw pair")
def evaluate_raw(watch: Watch) -> str | None:
    s = _shifted()
    made = trainer_of("mono_forward", row(nets.mlp()), watch, lr=0.01)
    made.fit(_standardized(s), epochs=20)
    a, b = made.evaluate(_standardized(s))["accuracy"], made.evaluate(s.pair)["accuracy"]
    return None if a == b else f"evaluate: {a:.3f} of the data, {b:.3f} of the same samples as a pair"


@found.add("mono_forward", "mlp", "standardized, raw pair as validation")
def validate_raw(watch: Watch) -> str | None:
    s = _shifted()
    made = trainer_of("mono_forward", row(nets.mlp()), watch, lr=0.01)
    history = made.fit(_standardized(s), s.pair, epochs=10, restore_best=False)
    told, share = history.rows[-1]["validation"], made.evaluate(_standardized(s))["accuracy"]
    own = told["accuracy"] if "accuracy" in told else told["last"]
    return None if abs(own - share) < 1e-6 else f"validation {own:.3f}, evaluate {share:.3f} of the same samples"


@found.add("mono_forward", "mlp", "predict of TensorData, standardized alike")
def predict_data(watch: Watch) -> str | None:
    s = _shifted()
    made = trainer_of("mono_forward", row(nets.mlp()), watch, lr=0.01)
    made.fit(_standardized(s), epochs=20)
    share = float((made.predict(_standardized(s)) == s.y).float().mean())
    told = made.evaluate(_standardized(s))["accuracy"]
    return None if abs(share - told) < 1e-6 else f"evaluate {told:.3f}, predict {share:.3f}"


def _other(made: bpfree.Trainer) -> TensorData:
    s = _shifted()
    return TensorData(s.x, s.y, 3, tuple([5.0] * 12), tuple([2.0] * 12))


@found.add("mono_forward", "mlp", "predict of TensorData with other statistics", REFUSED)
def predict_other(watch: Watch) -> str | None:
    return _after(watch, lambda made: made.predict(_other(made)))


@found.add("mono_forward", "mlp", "evaluate of TensorData with other statistics", REFUSED)
def evaluate_other(watch: Watch) -> str | None:
    return _after(watch, lambda made: made.evaluate(_other(made)))


@found.add("mono_forward", "mlp", "validation with other statistics", REFUSED)
def validation_other(watch: Watch) -> str | None:
    made = trainer_of("mono_forward", row(nets.mlp()), watch, lr=0.01)
    made.fit(_standardized(_shifted()), _other(made), epochs=1)
    return "accepted"


def _after(watch: Watch, use: Callable[[bpfree.Trainer], Any]) -> str | None:
    made = trainer_of("mono_forward", row(nets.mlp()), watch, lr=0.01)
    made.fit(_standardized(_shifted()), epochs=2)
    watch.used(made.net)
    use(made)
    return "accepted"


@found.add("mono_forward", "mlp", "standardized, saved and loaded")
def saved(watch: Watch) -> str | None:
    import tempfile
    from pathlib import Path

    s = _shifted()
    made = trainer_of("mono_forward", row(nets.mlp()), watch, lr=0.01)
    made.fit(_standardized(s), epochs=20)
    with tempfile.TemporaryDirectory() as folder:
        made.save(Path(folder, "t.safetensors"))
        again = trainer_of("mono_forward", row(nets.mlp()), watch, lr=0.01)
        again.load(Path(folder, "t.safetensors"), (12,))
    before, after = made.evaluate(_standardized(s))["accuracy"], (again.predict(s.x) == s.y).float().mean().item()
    return None if abs(before - after) < 1e-6 else f"evaluate {before:.3f}, predict after load {after:.3f}"


@found.add("mono_forward", "conv2d", "uint8 standardized, predict of uint8")
def predict_bytes(watch: Watch) -> str | None:
    s = samples(1, 8, 8, noise=0.5)
    data = TensorData(_bytes(s), s.y, 3, (0.5,), (0.3,))
    seen = Samples((_bytes(s).float() / 255 - 0.5) / 0.3, s.y, 3)
    return as_by_hand(watch, "mono_forward", nets.conv2d, data, seen)


@found.add("backprop", "conv2d", "augmented, predict as it is")
def augmented(watch: Watch) -> str | None:
    s = samples(1, 8, 8)
    data = TensorData(s.x, s.y, 3, augment=("crop", "flip"))
    made = trainer_of("backprop", row(nets.conv2d()), watch, lr=0.02)
    made.fit(data, epochs=10)
    return consistent(made, s, data)


@found.add("mono_forward", "mlp", "augmented table", REFUSED)
def augmented_table(watch: Watch) -> str | None:
    s = samples(12)
    made = trainer_of("mono_forward", row(nets.mlp()), watch)
    made.fit(TensorData(s.x, s.y, 3, augment=("flip",)), epochs=1)
    return "accepted"


# ---- predict -----------------------------------------------------------------------------------------------

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

    @found.add("mono_forward", "mlp", f"predict: {_text}", _expected)
    def predicted(watch: Watch, form: Callable[[Samples], Any] = _form) -> str | None:
        s = samples(12)
        made = trainer_of("mono_forward", row(nets.mlp()), watch, lr=0.01)
        made.fit(s.data, epochs=5)
        watch.used(made.net)
        given = form(s)
        answer = made.predict(given)
        x = given.float() if isinstance(given, Tensor) and not given.is_sparse else s.x
        with torch.no_grad():
            expected = made.model.eval()(x).argmax(1) if len(x) else torch.zeros(0, dtype=torch.long)
        return None if torch.equal(answer, expected) else f"{answer[:5]} for {expected[:5]}"


for _use in ("predict", "evaluate", "save", "model"):

    @found.add("mono_forward", "mlp", f"{_use} before fit", REFUSED)
    def before_fit(watch: Watch, use: str = _use) -> str | None:
        s = samples(12)
        made = trainer_of("mono_forward", row(nets.mlp()), watch)
        argument = {"predict": (s.x,), "evaluate": (s.data,), "save": ("/tmp/never",), "model": ()}[use]
        value = getattr(made, use)
        if use != "model":
            value(*argument)
        return "accepted"


@found.add("mono_forward", "mlp", "the trained model leaves evaluation mode to its user")
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
    return found.all
