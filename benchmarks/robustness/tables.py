"""An MLP on a table: types and shapes of samples and labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from benchmarks.robustness import _nets as nets
from benchmarks.robustness._case import (
    ANY,
    REFUSED,
    REFUSED_OR_WARNED,
    RIGHT,
    RIGHT_OR_REFUSED,
    RIGHT_OR_WARNED,
    Case,
    Outcome,
)
from benchmarks.robustness._compare import as_by_hand
from benchmarks.robustness._samples import Samples, samples
from benchmarks.robustness._verdict import Watch

Form = Callable[[Samples], Any]


def _strided(x: Tensor) -> Tensor:
    wide = torch.zeros(len(x), 3 * x.shape[1])
    wide[:, ::3] = x
    return wide[:, ::3]


def _expanded(s: Samples) -> Any:
    return s.x[:1].expand(len(s.x), -1), s.y


def _with(value: float) -> Form:
    def form(s: Samples) -> Any:
        x = s.x.clone()
        x[3, 2] = value
        return x, s.y

    return form


class Numpy(Dataset[Any]):
    """NumPy rows."""

    def __init__(self, s: Samples) -> None:
        self.s = s

    def __len__(self) -> int:
        return len(self.s.y)

    def __getitem__(self, i: int) -> Any:
        return self.s.x[i].numpy(), int(self.s.y[i])


class Noisy(Numpy):
    """Rows with new noise at each access, as with random transforms."""

    def __getitem__(self, i: int) -> Any:
        return self.s.x[i] + torch.rand(self.s.x.shape[1]), int(self.s.y[i])


class Triples(Numpy):
    """Rows with a third value, an identifier."""

    def __getitem__(self, i: int) -> Any:
        return self.s.x[i], int(self.s.y[i]), i


class Stream(IterableDataset[Any]):
    """Rows of an iterable data set, without a length."""

    def __iter__(self) -> Any:
        yield torch.zeros(12), 0


#: Types of samples: text, form, outcomes.
SAMPLES: list[tuple[str, Form, frozenset[Outcome]]] = [
    ("pair of tensors", lambda s: s.pair, RIGHT),
    ("list of two tensors", lambda s: list(s.pair), RIGHT),
    ("TensorData", lambda s: s.data, RIGHT),
    ("float64", lambda s: (s.x.double(), s.y), RIGHT),
    ("float16", lambda s: (s.x.half().float().half(), s.y), RIGHT),
    ("not contiguous", lambda s: (s.x.T.contiguous().T, s.y), RIGHT),
    ("view with gaps", lambda s: (_strided(s.x), s.y), RIGHT),
    ("requires grad", lambda s: (s.x.clone().requires_grad_(), s.y), RIGHT_OR_REFUSED),
    ("result of a graph", lambda s: (s.x.clone().requires_grad_() * 1.0, s.y), RIGHT_OR_REFUSED),
    ("nn.Parameter", lambda s: (torch.nn.Parameter(s.x.clone()), s.y), RIGHT_OR_REFUSED),
    ("TensorDataset", lambda s: TensorDataset(*s.pair), RIGHT),
    ("Subset", lambda s: Subset(TensorDataset(*s.pair), range(len(s.y))), RIGHT),
    ("numpy pair", lambda s: (s.x.numpy(), s.y.numpy()), RIGHT_OR_REFUSED),
    ("numpy float64 pair", lambda s: (s.x.double().numpy(), s.y.numpy()), RIGHT_OR_REFUSED),
    ("data set of numpy rows", Numpy, RIGHT_OR_REFUSED),
    ("data set with a random transform", Noisy, REFUSED_OR_WARNED),
    ("data set of triples", Triples, REFUSED),
    ("DataLoader", lambda s: DataLoader(TensorDataset(*s.pair), 8), RIGHT_OR_REFUSED),
    ("iterable data set", lambda s: Stream(), REFUSED),
    ("list of pairs", lambda s: list(zip(*s.pair, strict=True)), RIGHT_OR_REFUSED),
    ("three tensors", lambda s: (s.x, s.y, s.y), REFUSED),
    ("tensor alone", lambda s: s.x, REFUSED),
    ("dict", lambda s: {"x": s.x, "y": s.y}, REFUSED),
    ("None", lambda s: None, REFUSED),
    ("int64", lambda s: (s.x.long(), s.y), REFUSED),
    ("bool", lambda s: (s.x > 0.5, s.y), REFUSED),
    ("uint8 table", lambda s: ((s.x * 255).byte(), s.y), REFUSED),
    ("complex", lambda s: (s.x.to(torch.complex64), s.y), REFUSED),
    ("sparse", lambda s: (s.x.to_sparse(), s.y), REFUSED),
    ("sparse csr", lambda s: (s.x.to_sparse_csr(), s.y), REFUSED),
    ("meta tensor", lambda s: (s.x.to("meta"), s.y), REFUSED),
    ("quantized", lambda s: (torch.quantize_per_tensor(s.x, 0.1, 0, torch.quint8), s.y), REFUSED),
    ("float8", lambda s: (s.x.to(torch.float8_e4m3fn), s.y), RIGHT_OR_REFUSED),
    ("NaN in one sample", _with(float("nan")), REFUSED),
    ("infinity in one sample", _with(float("inf")), REFUSED),
    ("float64 beyond float32", lambda s: (_beyond(s.x), s.y), REFUSED),
    ("no sample", lambda s: (s.x[:0], s.y[:0]), REFUSED),
    ("samples without a feature axis", lambda s: (s.x[:, 0], s.y), REFUSED),
    ("one number", lambda s: (s.x[0, 0], s.y[0]), REFUSED),
    ("another width than the network's", lambda s: (s.x[:, :7], s.y), REFUSED),
    ("no feature", lambda s: (s.x[:, :0], s.y), REFUSED),
    ("more labels than samples", lambda s: (s.x[:-1], s.y), REFUSED),
]


def _beyond(x: Tensor) -> Tensor:
    values = x.double()
    values[3, 2] = 1e300
    return values


#: Types of labels, with ordinary samples.
LABELS: list[tuple[str, Callable[[Tensor], Any], frozenset[Outcome]]] = [
    ("int32", lambda y: y.int(), RIGHT),
    ("int16", lambda y: y.short(), RIGHT),
    ("uint8", lambda y: y.byte(), RIGHT),
    ("float", lambda y: y.float(), RIGHT_OR_REFUSED),
    ("complex", lambda y: y.to(torch.complex64), REFUSED),
    ("one-hot", lambda y: torch.nn.functional.one_hot(y, 3), REFUSED),
    ("one-hot floats", lambda y: torch.nn.functional.one_hot(y, 3).float(), REFUSED),
    ("column", lambda y: y.unsqueeze(1), REFUSED),
    ("view with gaps", lambda y: y.repeat_interleave(2)[::2], RIGHT),
    ("from 1", lambda y: y + 1, REFUSED),
    ("negative", lambda y: y - 1, REFUSED),
    ("ignored label -100", lambda y: torch.where(torch.arange(len(y)) == 5, -100, y), REFUSED),
    ("one far away", lambda y: torch.where(torch.arange(len(y)) == 5, 999, y), REFUSED),
    ("NaN", lambda y: torch.full((len(y),), float("nan")), REFUSED),
    ("list of ints", lambda y: y.tolist(), RIGHT_OR_REFUSED),
    ("strings", lambda y: [f"class {v}" for v in y.tolist()], REFUSED),
    ("nested", lambda y: torch.stack([y, y]), REFUSED),
]

#: Trainers that read samples in different ways.
TRAINERS = ("mono_forward", "backprop", "cafo")


def _seen(text: str, s: Samples) -> Samples:
    return Samples(s.x.half().float(), s.y, s.n_classes) if text in ("float16", "float8") else s


def _form(trainer: str, text: str, form: Form, expected: frozenset[Outcome]) -> Case:
    def attempt(watch: Watch) -> str | None:
        s = samples(12)
        return as_by_hand(watch, trainer, nets.mlp, form(s), _seen(text, s))

    return Case(trainer, "mlp", text, expected, attempt)


def _labels(trainer: str, text: str, change: Callable[[Tensor], Any], expected: frozenset[Outcome]) -> Case:
    def attempt(watch: Watch) -> str | None:
        s = samples(12)
        return as_by_hand(watch, trainer, nets.mlp, (s.x, change(s.y)), s)

    return Case(trainer, "mlp", f"labels: {text}", expected, attempt)


def _binary(trainer: str, text: str, change: Callable[[Tensor], Any], outcomes: frozenset[Outcome]) -> Case:
    def attempt(watch: Watch) -> str | None:
        s = samples(12, classes=2)
        return as_by_hand(watch, trainer, lambda: nets.mlp(classes=2), (s.x, change(s.y)), s)

    return Case(trainer, "mlp", f"two classes, labels: {text}", outcomes, attempt)


def _missing(trainer: str) -> list[Case]:
    """Cases with a class that no training sample has."""

    def pair(watch: Watch) -> str | None:
        s = samples(12)
        known = s.y < 2
        return as_by_hand(watch, trainer, nets.mlp, (s.x[known], s.y[known]), s)

    def named(watch: Watch) -> str | None:
        s = samples(12)
        known = s.y < 2
        few = Samples(s.x[known], s.y[known], 3)
        return as_by_hand(watch, trainer, nets.mlp, few.data, few)

    def middle(watch: Watch) -> str | None:
        s = samples(12)
        known = s.y != 1
        few = Samples(s.x[known], s.y[known], 3)
        return as_by_hand(watch, trainer, nets.mlp, few.pair, few)

    return [
        Case(trainer, "mlp", "the last class is missing", REFUSED, pair),
        Case(trainer, "mlp", "the last class is missing, n_classes given", RIGHT_OR_WARNED, named),
        Case(trainer, "mlp", "a class in the middle is missing", ANY, middle),
    ]


def cases() -> list[Case]:
    """All cases."""
    result = [_form("mono_forward", *row) for row in SAMPLES]
    odd = {"float64", "view with gaps", "not contiguous", "TensorData", "NaN in one sample", "numpy pair"}
    result += [_form(t, *row) for t in TRAINERS[1:] for row in SAMPLES if row[0] in odd]
    result += [_labels("mono_forward", *row) for row in LABELS]
    few = {"from 1", "int32", "one-hot", "float"}
    result += [_labels(t, *row) for t in TRAINERS[1:] for row in LABELS if row[0] in few]
    result += [
        _binary("mono_forward", "bool", lambda y: y.bool(), RIGHT_OR_REFUSED),
        _binary("mono_forward", "-1 and 1", lambda y: 2 * y - 1, REFUSED),
        _binary("mono_forward", "float 0 and 1", lambda y: y.float(), RIGHT_OR_REFUSED),
        _binary("mono_forward", "numpy", np.asarray, RIGHT_OR_REFUSED),
    ]
    return result + [case for t in ("mono_forward", "backprop") for case in _missing(t)]
