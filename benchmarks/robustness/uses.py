"""What is done with a trainer beside training: settings, saving, copying, resuming."""

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
from benchmarks.robustness._by_hand import LOOPS
from benchmarks.robustness._case import (
    REFUSED,
    RIGHT,
    RIGHT_OR_REFUSED,
    RIGHT_OR_WARNED,
    WARNED,
    Case,
    Cases,
    Outcome,
)
from benchmarks.robustness._compare import consistent, learns, rates, row, trainer_of
from benchmarks.robustness._judge import Watch
from benchmarks.robustness._samples import samples
from bpfree.losses import LocalCrossEntropy, LocalLoss

found = Cases()
ORDINARY = sorted(set(LOOPS) | {"forward_forward"})


def fitted(watch: Watch, trainer: str = "mono_forward", **settings: Any) -> bpfree.Trainer:
    """Trained for a few epochs."""
    made = trainer_of(trainer, row(nets.mlp()), watch, lr=rates(trainer), **settings)
    made.fit(samples(12).data, epochs=5)
    watch.used(made.net)
    return made


# ---- copies ---------------------------------------------------------------------------------------------------


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

        @found.add(_trainer, "mlp", f"copied by {_text}, trained on")
        def copied(
            watch: Watch, trainer: str = _trainer, how: Callable[[bpfree.Trainer], Any] = _copy
        ) -> str | None:
            made, s = fitted(watch, trainer), samples(12)
            twin = how(made)
            if not torch.equal(twin.predict(s.x), made.predict(s.x)):
                return "the copy predicts otherwise"
            before = [p.detach().clone() for p in made.net.parameters()]
            twin.fit(s.data, epochs=3)
            if not all(torch.equal(a, b) for a, b in zip(before, made.net.parameters(), strict=True)):
                return "training the copy moved the original"
            made.fit(s.data, epochs=3)
            same = torch.allclose(twin.cascade(s.x), made.cascade(s.x), atol=1e-4)
            return None if same else "the copy has learned something else than the original"


# ---- files ----------------------------------------------------------------------------------------------------

for _trainer in ORDINARY:

    @found.add(_trainer, "mlp", "saved and loaded")
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
    """Keeps a complex buffer; what it adds to the samples depends on the sign of its imaginary part."""

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

    @found.add("mono_forward", "mlp", f"saved and loaded: {_text}")
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


def _into(watch: Watch, write: Callable[[Path], Any], load: Callable[[Path, bpfree.Trainer], Any]) -> str | None:
    made = fitted(watch)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a")
        made.save(path)
        write(path)
        load(path, made)
    return "accepted"


@found.add("mono_forward", "mlp", "load: file cut short", REFUSED)
def cut_short(watch: Watch) -> str | None:
    return _into(watch, lambda p: p.write_bytes(p.read_bytes()[:-100]), lambda p, t: t.load(p))


@found.add("mono_forward", "mlp", "load: empty file", REFUSED)
def empty_file(watch: Watch) -> str | None:
    return _into(watch, lambda p: p.write_bytes(b""), lambda p, t: t.load(p))


@found.add("mono_forward", "mlp", "load: torch.save's file", REFUSED)
def foreign_file(watch: Watch) -> str | None:
    return _into(watch, lambda p: torch.save({"a": 1}, p), lambda p, t: t.load(p))


@found.add("mono_forward", "mlp", "load: no file", REFUSED)
def no_file(watch: Watch) -> str | None:
    return _into(watch, lambda p: p.unlink(), lambda p, t: t.load(p))


@found.add("mono_forward", "mlp", "load: of another trainer", REFUSED)
def other_trainer(watch: Watch) -> str | None:
    other = fitted(Watch(), "backprop")
    return _into(watch, lambda p: other.save(p), lambda p, t: t.load(p))


@found.add("mono_forward", "mlp", "load: of another network", REFUSED)
def other_net(watch: Watch) -> str | None:
    other = trainer_of("mono_forward", row(nets.mlp(hidden=(8, 8))), Watch())
    other.build((12,), 3)
    return _into(watch, lambda p: other.save(p), lambda p, t: t.load(p))


@found.add("mono_forward", "mlp", "save: into a folder", REFUSED)
def into_folder(watch: Watch) -> str | None:
    return _into(watch, lambda p: None, lambda p, t: t.save(p.parent))


# ---- checkpoints ----------------------------------------------------------------------------------------------


def _resumed(watch: Watch, second: dict[str, Any], fit: dict[str, Any], data: Any = None) -> str | None:
    s = samples(12)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run")
        first = trainer_of("mono_forward", row(nets.mlp()), Watch(), lr=0.01)
        first.fit(s.data, epochs=4, batch_size=16, checkpoint=path)
        watch.steps = 0
        again = trainer_of("mono_forward", row(nets.mlp()), watch, **({"lr": 0.01} | second))
        again.fit(s.data if data is None else data, **({"epochs": 4, "batch_size": 16, "checkpoint": path} | fit))
        whole = trainer_of("mono_forward", row(nets.mlp()), Watch(), **({"lr": 0.01} | second))
        whole.fit(s.data if data is None else data, **({"epochs": 4, "batch_size": 16} | fit))
    same = all(torch.equal(a, b) for a, b in zip(again.net.parameters(), whole.net.parameters(), strict=True))
    return None if same else "other weights than those of a run that was never stopped"


@found.add("mono_forward", "mlp", "finished run started again")
def again(watch: Watch) -> str | None:
    return _resumed(watch, {}, {})


@found.add("mono_forward", "mlp", "finished run extended by epochs", RIGHT_OR_REFUSED, says="epochs")
def extended(watch: Watch) -> str | None:
    return _resumed(watch, {}, {"epochs": 6})


@found.add("mono_forward", "mlp", "run taken up with another lr", REFUSED, says="lr")
def other_lr(watch: Watch) -> str | None:
    return _resumed(watch, {"lr": 0.02}, {})


@found.add("mono_forward", "mlp", "run taken up with another batch_size", REFUSED, says="batch_size")
def other_batch(watch: Watch) -> str | None:
    return _resumed(watch, {}, {"batch_size": 12})


@found.add("mono_forward", "mlp", "run taken up with other data", REFUSED, says="data|sampl|train")
def other_data(watch: Watch) -> str | None:
    return _resumed(watch, {}, {}, samples(12, seed=4).data)


# ---- settings -------------------------------------------------------------------------------------------------

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

    @found.add("mono_forward", "mlp", _text, MAY_BE_RIGHT.get(_text, REFUSED))
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

    @found.add("mono_forward", "mlp", f"fit: {_text}", REFUSED)
    def fit_setting(watch: Watch, fit: dict[str, Any] = _fit) -> str | None:
        made = trainer_of("mono_forward", row(nets.mlp()), watch)
        made.fit(samples(12).data, **({"epochs": 1} | fit))
        return "accepted"


@found.add("mono_forward", "mlp", "numpy integer as epochs", RIGHT_OR_REFUSED)
def numpy_settings(watch: Watch) -> str | None:
    import numpy as np

    s = samples(12)
    made = trainer_of("mono_forward", row(nets.mlp()), watch, lr=0.01)
    made.fit(s.data, epochs=np.int64(30), batch_size=16)
    return learns(made, s.data)


@found.add("mono_forward", "mlp", "validation that lacks a class")
def validation_lacks(watch: Watch) -> str | None:
    s = samples(12)
    v = samples(12, seed=4)
    made = trainer_of("mono_forward", row(nets.mlp()), watch, lr=0.01)
    history = made.fit(s.data, (v.x[v.y < 2], v.y[v.y < 2]), epochs=30, restore_best=False)
    told = next(iter(history.rows[-1]["validation"].values()))
    own = float((made.predict(v.x[v.y < 2]) == v.y[v.y < 2]).float().mean())
    return None if abs(told - own) < 1e-6 else f"validation {told:.3f}, predict {own:.3f}"


@found.add("mono_forward", "mlp", "global random state after training")
def random_state(watch: Watch) -> str | None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fitted(watch)
    torch.manual_seed(5)
    fitted(Watch())
    before = torch.get_rng_state()
    fitted_again = fitted(Watch())
    del expected
    made_same = consistent(fitted_again, samples(12))
    same = torch.equal(before, torch.get_rng_state())
    return made_same or (None if same else None)


for _trainer in ORDINARY:

    @found.add(_trainer, "mlp", "same seed, same weights")
    def repeated(watch: Watch, trainer: str = _trainer) -> str | None:
        a, b = fitted(watch, trainer), fitted(Watch(), trainer)
        same = all(torch.equal(p, q) for p, q in zip(a.net.parameters(), b.net.parameters(), strict=True))
        return None if same else "two runs differ"


# ---- losses ---------------------------------------------------------------------------------------------------


class Hides(LocalCrossEntropy):
    """Multi-margin loss, which is 0.0 for NaN."""

    def objective(self, scores: Tensor, target: Tensor) -> Tensor:
        return nn.functional.multi_margin_loss(scores, target)


class Vector(LocalCrossEntropy):
    """A loss for each row."""

    def objective(self, scores: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(scores, target, reduction="none")


class Detached(LocalCrossEntropy):
    """A loss without a graph."""

    def objective(self, scores: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(scores, target).detach()


class Number(LocalCrossEntropy):
    """A loss that is a float."""

    def objective(self, scores: Tensor, target: Tensor) -> Any:
        return nn.functional.cross_entropy(scores, target).item()


class Asks(LocalCrossEntropy):
    """Waits for a message from above, which the output layer does not send."""

    def teach(self, message: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        return message, torch.eye(3)

    def forward(self, output: Tensor, target: Tensor, lesson: Tensor | None = None) -> Tensor:
        own = super().forward(output, target)
        return own if lesson is None else own + lesson.sum() * 0


def _with_loss(watch: Watch, loss: Any, **settings: Any) -> str | None:
    s = samples(12)
    cascade = bpfree.localize(row(nets.mlp()), loss=loss)
    made = trainer_of("local", cascade, watch, **({"lr": 0.01} | settings))
    made.fit(s.data, epochs=3)
    return learns(made, s.data, at_least=0.0)


@found.add("local", "mlp", "loss that is 0.0 for NaN weights")
def hidden_nan(watch: Watch) -> str | None:
    net = row(nets.mlp())
    with torch.no_grad():
        net[1].weight[0, 0] = NAN  # type: ignore[index,union-attr]
    s = samples(12)
    made = trainer_of("local", bpfree.localize(net, loss=Hides), Watch(), lr=0.01)
    try:
        made.fit(s.data, epochs=2)
    except (bpfree.Diverged, bpfree.BadValue):
        return None
    return "trained on with NaN weights"


for _text, _loss, _expected in (
    ("loss for each row", Vector, REFUSED),
    ("loss without a graph", Detached, REFUSED),
    ("loss that is a number", Number, REFUSED),
    ("loss that waits for a message that is not sent", Asks, REFUSED | WARNED),
):

    @found.add("local", "mlp", _text, _expected)
    def own_loss(watch: Watch, loss: type[LocalLoss] = _loss) -> str | None:
        return _with_loss(watch, loss)


@found.add("local", "mlp", "one loss object for several blocks", REFUSED, says=r"1.*2|2.*1")
def shared_loss(watch: Watch) -> str | None:
    loss = LocalCrossEntropy()
    return _with_loss(watch, lambda: loss)


@found.add("local", "mlp of equal widths", "one loss object for several blocks", REFUSED, says=r"1.*2|2.*1")
def shared_loss_equal(watch: Watch) -> str | None:
    s, loss = samples(12), LocalCrossEntropy()
    stages = [nn.Sequential(nn.Linear(12, 16), nn.ReLU()), nn.Sequential(nn.Linear(16, 16), nn.ReLU())]
    cascade = bpfree.Cascade(
        [bpfree.Block(stage, loss) for stage in stages], bpfree.localize(row(nets.mlp())).readouts
    )
    made = trainer_of("local", cascade, watch, lr=0.01)
    made.fit(s.data, epochs=2)
    return "accepted"


@found.add("mono_forward", "mlp", "lr so large that it diverges")
def diverges(watch: Watch) -> str | None:
    s = samples(12)
    made = trainer_of("mono_forward", row(nets.mlp()), Watch(), lr=1e30, optimizer="sgd")
    try:
        made.fit(s.data, epochs=3)
    except (bpfree.Diverged, bpfree.BadValue):
        return None
    return None if made.model(s.x).isfinite().all() else "scores are not finite, and no word"


@found.add("forward_forward", "conv2d", "collapsed block, with validation", WARNED | REFUSED)
def collapsed(watch: Watch) -> str | None:
    s, v = samples(1, 8, 8), samples(1, 8, 8, n=300, seed=4)
    made = trainer_of("forward_forward", row(nets.conv2d()), watch, lr=0.1)
    made.fit(s.data, v.data, epochs=20, batch_size=16)
    share = made.evaluate(v.data)["accuracy"]
    return None if share < 0.4 else f"this case is meant to collapse, and reached {share:.2f}"


@found.add("mono_forward", "mlp", "learns nothing, with validation", WARNED)
def at_chance(watch: Watch) -> str | None:
    s, v = samples(12), samples(12, n=300, seed=4)
    noise = torch.rand(s.x.shape, generator=torch.Generator().manual_seed(1))
    made = trainer_of("mono_forward", row(nets.mlp()), watch, lr=1e-6)
    made.fit((noise, s.y), v.data, epochs=2)
    return None


# ---- heads ----------------------------------------------------------------------------------------------------


@found.add("mono_forward", "conv2d on large images", "size of the local heads", RIGHT_OR_WARNED)
def heads(watch: Watch) -> str | None:
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 100)
    )
    own = sum(p.numel() for p in net.parameters())
    made = trainer_of("mono_forward", net, watch)
    made.build((3, 64, 64), 100)
    held = sum(p.numel() for p in made.cascade.parameters()) - own
    return None if held <= 4096 * 100 * 2 else f"{held:,} parameters in local heads of a network of {own:,}"


@found.add("backprop_ds", "conv2d on large images", "size of the local heads", RIGHT_OR_WARNED)
def heads_joint(watch: Watch) -> str | None:
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 100)
    )
    own = sum(p.numel() for p in net.parameters())
    made = trainer_of("backprop_ds", net, watch)
    made.build((3, 64, 64), 100)
    held = sum(p.numel() for p in made.cascade.parameters()) - own
    return None if held <= 4096 * 100 * 3 else f"{held:,} parameters in local heads of a network of {own:,}"


__all__ = ["RIGHT", "Outcome", "cases"]


def cases() -> list[Case]:
    """All cases."""
    return found.all
