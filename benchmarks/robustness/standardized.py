"""Standardized data: the statistics belong to the trained model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

import bpfree
from benchmarks.robustness import _nets as nets
from benchmarks.robustness._case import (
    REFUSED,
    RIGHT_OR_WARNED,
    Case,
    Cases,
)
from benchmarks.robustness._compare import as_by_hand, consistent, rates, row, trainer_of
from benchmarks.robustness._samples import Samples, samples
from benchmarks.robustness._verdict import Watch
from bpfree.data import TensorData

registry = Cases()


def _bytes(s: Samples) -> Tensor:
    return (s.x * 255).round().clamp(0, 255).byte()


def _standardized(s: Samples) -> TensorData:
    x = s.x.transpose(0, 1).flatten(1)
    return TensorData(s.x, s.y, s.n_classes, tuple(x.mean(1).tolist()), tuple(x.std(1).tolist()))


def _shifted(seed: int = 0) -> Samples:
    """Samples with a large mean, so that the standardization has an effect."""
    s = samples(12, noise=0.5, seed=seed)
    return Samples(5 + 3 * s.x, s.y, s.n_classes)


STANDARDIZED = (
    "mono_forward",
    "backprop",
    "dfa",
    "cafo",
    "counter_current",
    "random_features",
    "forward_forward",
)

for _trainer in STANDARDIZED:

    @registry.add(_trainer, "mlp", "standardized, predict of raw samples", RIGHT_OR_WARNED)
    def raw(watch: Watch, trainer: str = _trainer) -> str | None:
        s = _shifted()
        data = _standardized(s)
        made = trainer_of(trainer, row(nets.mlp()), watch, lr=rates(trainer))
        made.fit(data, epochs=20)
        return consistent(made, s, data)


@registry.add("mono_forward", "mlp", "standardized, by hand")
def by_hand(watch: Watch) -> str | None:
    s = _shifted()
    data = _standardized(s)
    standard = Samples((s.x - s.x.mean(0)) / s.x.std(0), s.y, 3)
    return as_by_hand(watch, "mono_forward", nets.mlp, data, standard)


@registry.add("mono_forward", "mlp", "standardized, evaluate of a raw pair")
def evaluate_raw(watch: Watch) -> str | None:
    s = _shifted()
    made = trainer_of("mono_forward", row(nets.mlp()), watch, lr=0.01)
    made.fit(_standardized(s), epochs=20)
    a, b = made.evaluate(_standardized(s))["accuracy"], made.evaluate(s.pair)["accuracy"]
    return None if a == b else f"evaluate: {a:.3f} of the data, {b:.3f} of the same samples as a pair"


@registry.add("mono_forward", "mlp", "standardized, raw pair as validation")
def validate_raw(watch: Watch) -> str | None:
    s = _shifted()
    made = trainer_of("mono_forward", row(nets.mlp()), watch, lr=0.01)
    history = made.fit(_standardized(s), s.pair, epochs=10, restore_best=False)
    reported, share = history.rows[-1]["validation"], made.evaluate(_standardized(s))["accuracy"]
    reported_share = reported["accuracy"] if "accuracy" in reported else reported["last"]
    return (
        None
        if abs(reported_share - share) < 1e-6
        else f"validation {reported_share:.3f}, evaluate {share:.3f} of the same samples"
    )


@registry.add("mono_forward", "mlp", "predict of TensorData, standardized alike")
def predict_data(watch: Watch) -> str | None:
    s = _shifted()
    made = trainer_of("mono_forward", row(nets.mlp()), watch, lr=0.01)
    made.fit(_standardized(s), epochs=20)
    share = float((_predict(made, _standardized(s)) == s.y).float().mean())
    reported = made.evaluate(_standardized(s))["accuracy"]
    return None if abs(share - reported) < 1e-6 else f"evaluate {reported:.3f}, predict {share:.3f}"


def _predict(made: bpfree.Trainer, data: Any) -> Tensor:
    return made.predict(data)


def _other(made: bpfree.Trainer) -> TensorData:
    s = _shifted()
    return TensorData(s.x, s.y, 3, tuple([5.0] * 12), tuple([2.0] * 12))


@registry.add("mono_forward", "mlp", "predict of TensorData with other statistics", REFUSED)
def predict_other(watch: Watch) -> str | None:
    return _after(watch, lambda made: _predict(made, _other(made)))


@registry.add("mono_forward", "mlp", "evaluate of TensorData with other statistics", REFUSED)
def evaluate_other(watch: Watch) -> str | None:
    return _after(watch, lambda made: made.evaluate(_other(made)))


@registry.add("mono_forward", "mlp", "validation with other statistics", REFUSED)
def validation_other(watch: Watch) -> str | None:
    made = trainer_of("mono_forward", row(nets.mlp()), watch, lr=0.01)
    made.fit(_standardized(_shifted()), _other(made), epochs=1)
    return "accepted"


def _after(watch: Watch, use: Callable[[bpfree.Trainer], Any]) -> str | None:
    made = trainer_of("mono_forward", row(nets.mlp()), watch, lr=0.01)
    made.fit(_standardized(_shifted()), epochs=2)
    watch.end_training(made.net)
    use(made)
    return "accepted"


@registry.add("mono_forward", "mlp", "standardized, saved and loaded")
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
    before, after = (
        made.evaluate(_standardized(s))["accuracy"],
        (again.predict(s.x) == s.y).float().mean().item(),
    )
    return None if abs(before - after) < 1e-6 else f"evaluate {before:.3f}, predict after load {after:.3f}"


@registry.add("mono_forward", "conv2d", "uint8 standardized, predict of uint8")
def predict_bytes(watch: Watch) -> str | None:
    s = samples(1, 8, 8, noise=0.5)
    data = TensorData(_bytes(s), s.y, 3, (0.5,), (0.3,))
    standard = Samples((_bytes(s).float() / 255 - 0.5) / 0.3, s.y, 3)
    return as_by_hand(watch, "mono_forward", nets.conv2d, data, standard)


def cases() -> list[Case]:
    """All cases."""
    return registry.all
