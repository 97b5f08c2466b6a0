"""Copies of trainers, saved weights, checkpoints."""

from __future__ import annotations

import copy
import io
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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
    rates,
    row,
    trainer_of,
)
from benchmarks.robustness._samples import samples
from benchmarks.robustness._verdict import Watch

registry = Cases()


def _pickled(made: bpfree.Trainer) -> Any:
    return pickle.loads(pickle.dumps(made))


def _torch_saved(made: bpfree.Trainer) -> Any:
    buffer = io.BytesIO()
    torch.save(made, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES: dict[str, Callable[[bpfree.Trainer], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": _pickled,
    "torch.save": _torch_saved,
    "clone": lambda made: made.clone(),
}

for _trainer in ORDINARY:
    for _text, _copy in COPIES.items():

        @registry.add(_trainer, "mlp", f"copied by {_text}, trained on")
        def copied(
            watch: Watch, trainer: str = _trainer, how: Callable[[bpfree.Trainer], Any] = _copy
        ) -> str | None:
            made, s = fitted(watch, trainer), samples(12)
            copied = how(made)
            if not torch.equal(copied.predict(s.x), made.predict(s.x)):
                return "the copy predicts otherwise"
            before = [p.detach().clone() for p in made.net.parameters()]
            copied.fit(s.data, epochs=3)
            if not all(torch.equal(a, b) for a, b in zip(before, made.net.parameters(), strict=True)):
                return "training the copy moved the original"
            made.fit(s.data, epochs=3)
            same = torch.allclose(copied.cascade(s.x), made.cascade(s.x), atol=1e-4)
            return None if same else "the copy has learned something else than the original"


for _trainer in ORDINARY:

    @registry.add(_trainer, "mlp", "saved and loaded")
    def saved(watch: Watch, trainer: str = _trainer) -> str | None:
        made, s = fitted(watch, trainer), samples(12)
        with tempfile.TemporaryDirectory() as folder:
            made.save(Path(folder, "a"))
            again = trainer_of(trainer, row(nets.mlp()), Watch(), lr=rates(trainer))
            again.load(Path(folder, "a"), (12,))
        same = torch.equal(made.cascade(s.x), again.cascade(s.x))
        return None if same else "other scores after loading"


def _conjugate() -> Tensor:
    return torch.complex(torch.arange(12.0), torch.arange(12.0).flip(0)).conj()


class Rotated(nn.Module):
    """Adds a value that depends on the sign of the imaginary part of a complex buffer."""

    turn: Tensor

    def __init__(self, turn: Tensor) -> None:
        super().__init__()
        self.register_buffer("turn", turn)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.view_as_real(self.turn.resolve_conj()).sum(-1).float()


for _text, _buffer in (
    ("complex buffer", lambda: _conjugate().conj().resolve_conj()),
    ("conjugated complex buffer", _conjugate),
    ("complex128 buffer", lambda: _conjugate().to(torch.complex128).conj()),
    ("negated imaginary part as buffer", lambda: _conjugate().imag),
):

    @registry.add("mono_forward", "mlp", f"saved and loaded: {_text}")
    def saved_complex(watch: Watch, buffer: Callable[[], Tensor] = _buffer) -> str | None:
        def net(turn: Tensor) -> nn.Module:
            layer = Rotated(turn) if turn.is_complex() else Shifted(turn)
            return nn.Sequential(layer, *nets.mlp().layers)

        s = samples(12)
        made = trainer_of("mono_forward", net(buffer()), watch, lr=0.01)
        made.fit(s.data, epochs=5)
        with tempfile.TemporaryDirectory() as folder:
            made.save(Path(folder, "a"))
            again = trainer_of("mono_forward", net(torch.zeros_like(buffer())), Watch(), lr=0.01)
            again.load(Path(folder, "a"), (12,))
        return None if torch.allclose(made.cascade(s.x), again.cascade(s.x)) else "other scores after loading"


class Shifted(nn.Module):
    """Adds a buffer."""

    by: Tensor

    def __init__(self, by: Tensor) -> None:
        super().__init__()
        self.register_buffer("by", by)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * self.by


def _into(
    watch: Watch, write: Callable[[Path], Any], load: Callable[[Path, bpfree.Trainer], Any]
) -> str | None:
    made = fitted(watch)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a")
        made.save(path)
        write(path)
        load(path, made)
    return "accepted"


@registry.add("mono_forward", "mlp", "load: file cut short", REFUSED)
def cut_short(watch: Watch) -> str | None:
    return _into(watch, lambda p: p.write_bytes(p.read_bytes()[:-100]), lambda p, t: t.load(p))


@registry.add("mono_forward", "mlp", "load: empty file", REFUSED)
def empty_file(watch: Watch) -> str | None:
    return _into(watch, lambda p: p.write_bytes(b""), lambda p, t: t.load(p))


@registry.add("mono_forward", "mlp", "load: torch.save's file", REFUSED)
def foreign_file(watch: Watch) -> str | None:
    return _into(watch, lambda p: torch.save({"a": 1}, p), lambda p, t: t.load(p))


@registry.add("mono_forward", "mlp", "load: no file", REFUSED)
def no_file(watch: Watch) -> str | None:
    return _into(watch, lambda p: p.unlink(), lambda p, t: t.load(p))


@registry.add("mono_forward", "mlp", "load: of another trainer", REFUSED)
def other_trainer(watch: Watch) -> str | None:
    other = fitted(Watch(), "backprop")
    return _into(watch, other.save, lambda p, t: t.load(p))


@registry.add("mono_forward", "mlp", "load: of another network", REFUSED)
def other_net(watch: Watch) -> str | None:
    other = trainer_of("mono_forward", row(nets.mlp(hidden=(8, 8))), Watch())
    other.build((12,), 3)
    return _into(watch, other.save, lambda p, t: t.load(p))


@registry.add("mono_forward", "mlp", "save: into a folder", REFUSED)
def into_folder(watch: Watch) -> str | None:
    return _into(watch, lambda p: None, lambda p, t: t.save(p.parent))


def _resumed(watch: Watch, second: dict[str, Any], fit: dict[str, Any], data: Any = None) -> str | None:
    s = samples(12)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run")
        first = trainer_of("mono_forward", row(nets.mlp()), Watch(), lr=0.01)
        first.fit(s.data, epochs=4, batch_size=16, checkpoint=path)
        watch.steps = 0
        again = trainer_of("mono_forward", row(nets.mlp()), watch, **({"lr": 0.01} | second))
        again.fit(
            s.data if data is None else data, checkpoint=path, **({"epochs": 4, "batch_size": 16} | fit)
        )
        uninterrupted = trainer_of("mono_forward", row(nets.mlp()), Watch(), **({"lr": 0.01} | second))
        uninterrupted.fit(s.data if data is None else data, **({"epochs": 4, "batch_size": 16} | fit))
    same = all(
        torch.equal(a, b) for a, b in zip(again.net.parameters(), uninterrupted.net.parameters(), strict=True)
    )
    return None if same else "other weights than those of a run that was never stopped"


@registry.add("mono_forward", "mlp", "finished run started again")
def again(watch: Watch) -> str | None:
    return _resumed(watch, {}, {})


@registry.add("mono_forward", "mlp", "finished run extended by epochs", RIGHT_OR_REFUSED, mentions="epochs")
def extended(watch: Watch) -> str | None:
    return _resumed(watch, {}, {"epochs": 6})


@registry.add("mono_forward", "mlp", "run taken up with another lr", REFUSED, mentions="lr")
def other_lr(watch: Watch) -> str | None:
    return _resumed(watch, {"lr": 0.02}, {})


@registry.add("mono_forward", "mlp", "run taken up with another batch_size", REFUSED, mentions="batch_size")
def other_batch(watch: Watch) -> str | None:
    return _resumed(watch, {}, {"batch_size": 12})


@registry.add("mono_forward", "mlp", "run taken up with other data", REFUSED, mentions="data|sampl|train")
def other_data(watch: Watch) -> str | None:
    return _resumed(watch, {}, {}, samples(12, seed=4).data)


def cases() -> list[Case]:
    """All cases."""
    return registry.all
