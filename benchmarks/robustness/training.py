"""Ordinary networks by every trainer, and what changes batches: sizes, epochs, optimizers, precision."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

import bpfree
from benchmarks.robustness import _by_hand as hand
from benchmarks.robustness import _nets as nets
from benchmarks.robustness._case import REFUSED, RIGHT, RIGHT_OR_REFUSED, RIGHT_OR_WARNED, SPOKEN, Case, Cases
from benchmarks.robustness._compare import MakeNet, as_by_hand, learns, rates, row, solves, trainer_of, uses_differ
from benchmarks.robustness._judge import Watch
from benchmarks.robustness._samples import samples

#: Networks, and the shape of the samples that they take.
NETS: dict[str, tuple[MakeNet, tuple[int, ...]]] = {
    "mlp": (nets.mlp, (12,)),
    "mlp of one hidden layer": (lambda: nets.mlp(hidden=(16,)), (12,)),
    "mlp of three hidden layers": (lambda: nets.mlp(hidden=(16, 12, 10)), (12,)),
    "conv1d": (nets.conv1d, (1, 12)),
    "conv2d": (nets.conv2d, (1, 8, 8)),
    "conv2d with batch norm": (lambda: nets.conv2d(norm=True), (1, 8, 8)),
    "conv3d": (nets.conv3d, (1, 4, 4, 4)),
}

#: Trainers that a loop by hand exists for, on these networks.
ON = {
    "backprop": list(NETS),
    "backprop_ds": ["mlp", "conv1d", "conv2d", "conv3d"],
    "mf_joint": ["mlp", "conv1d", "conv2d", "conv3d"],
    "mono_forward": list(NETS),
    "local": ["mlp", "conv1d", "conv3d"],
    "random_features": ["mlp", "conv1d", "conv2d", "conv3d"],
    "dfa": ["mlp", "mlp of one hidden layer", "conv1d", "conv2d", "conv3d"],
    "cafo": ["mlp", "conv1d", "conv2d", "conv3d"],
    "counter_current": ["mlp", "mlp of one hidden layer", "mlp of three hidden layers"],
}

found = Cases()


def _by_every_trainer() -> None:
    for trainer, names in ON.items():
        for name in names:
            make, shape = NETS[name]

            def attempt(
                watch: Watch, trainer: str = trainer, make: MakeNet = make, shape: tuple[int, ...] = shape
            ) -> str | None:
                s = samples(*shape)
                return as_by_hand(watch, trainer, make, s.data, s)

            found.add(trainer, name, "plain")(attempt)


def _closed_form() -> None:
    for name in ("mlp", "conv1d", "conv2d", "conv3d"):
        make, shape = NETS[name]

        def attempt(watch: Watch, make: MakeNet = make, shape: tuple[int, ...] = shape) -> str | None:
            s = samples(*shape, noise=0.6)
            trainer = trainer_of("cafo", row(make()), watch, predictor="closed_form", lam=[1e-2])
            trainer.fit(s.pair, batch_size=7)
            by_hand = hand.cafo_closed_form(make(), s.x, s.y, 3, 1e-2)
            return uses_differ(trainer, by_hand.scores, s.pair, s)

        found.add("cafo", name, "closed form against least squares")(attempt)


_by_every_trainer()
_closed_form()


@found.add("cafo", "mlp with dead units", "closed form")
def dead_units(watch: Watch) -> str | None:
    def make() -> hand.Net:
        net = nets.mlp()
        with torch.no_grad():
            net.layers[1].weight[:5] = 0  # type: ignore[index,union-attr]
            net.layers[1].bias[:5] = -1  # type: ignore[index,union-attr]
        return net

    s = samples(12)
    trainer = trainer_of("cafo", row(make()), watch, predictor="closed_form", lam=[1e-2])
    trainer.fit(s.pair)
    return uses_differ(trainer, hand.cafo_closed_form(make(), s.x, s.y, 3, 1e-2).scores, s.pair, s)


@found.add("cafo", "mlp whose every unit is dead", "closed form", RIGHT_OR_REFUSED | RIGHT_OR_WARNED)
def all_dead(watch: Watch) -> str | None:
    net = nets.mlp()
    with torch.no_grad():
        net.layers[1].weight.zero_()  # type: ignore[union-attr,operator]
        net.layers[1].bias.fill_(-1)  # type: ignore[union-attr,operator]
    s = samples(12)
    trainer = trainer_of("cafo", row(net), watch, predictor="closed_form")
    trainer.fit(s.pair)
    return None if trainer.evaluate(s.pair)["accuracy"] <= 0.5 else "accuracy of dead units above chance"


@found.add("cafo", "conv2d with dead channels", "closed form, default penalties and validation")
def dead_channels(watch: Watch) -> str | None:
    def make() -> hand.Net:
        net = nets.conv2d()
        with torch.no_grad():
            net.layers[0].weight[:2] = 0  # type: ignore[index,union-attr]
            net.layers[0].bias[:2] = -1  # type: ignore[index,union-attr]
        return net

    s, v = samples(1, 8, 8), samples(1, 8, 8, seed=5)
    trainer = trainer_of("cafo", row(make()), watch, predictor="closed_form")
    trainer.fit(s.pair, v.pair)
    return learns(trainer, s.pair)


# ---- Forward-Forward ---------------------------------------------------------------------------------------


def _blank(s: Any) -> Any:
    """Images whose first row never varies."""
    x = s.x.clone()
    x.flatten(1)[:, :8] = 0
    return type(s)(x, s.y, s.n_classes)


for _readout in ("classifier", "goodness"):

    @found.add("forward_forward", "mlp", f"images with a blank margin, {_readout}")
    def blank_margin(watch: Watch, readout: str = _readout) -> str | None:
        s = _blank(samples(1, 8, 8, n=96))
        net = row(nets.mlp(64, (40, 40)))
        return solves(watch, "forward_forward", net, s.data, s, readout=readout, fit={"epochs": 40})

    @found.add("forward_forward", "mlp", f"table, class told by the first columns, {_readout}", RIGHT_OR_WARNED)
    def first_columns(watch: Watch, readout: str = _readout) -> str | None:
        y = torch.arange(96) % 4
        x = torch.rand(96, 12, generator=torch.Generator().manual_seed(0)) * 0.1
        x[torch.arange(96), y] = 1.0
        s = samples(12)
        s = type(s)(x, y, 4)
        net = row(nets.mlp(12, (40, 40), 4))
        return solves(watch, "forward_forward", net, s.data, s, readout=readout, fit={"epochs": 40})

    @found.add("forward_forward", "mlp", f"table, {_readout}", RIGHT_OR_WARNED)
    def table(watch: Watch, readout: str = _readout) -> str | None:
        s = samples(12, n=96)
        net = row(nets.mlp(12, (40, 40)))
        return solves(watch, "forward_forward", net, s.data, s, readout=readout, fit={"epochs": 40})

    @found.add("forward_forward", "mlp", f"samples of 0 to 255, {_readout}", SPOKEN)
    def pixels(watch: Watch, readout: str = _readout) -> str | None:
        s = _blank(samples(1, 8, 8, n=96))
        s = type(s)(s.x * 255, s.y, 3)
        net = row(nets.mlp(64, (40, 40)))
        return solves(watch, "forward_forward", net, s.data, s, readout=readout, fit={"epochs": 40}, at_least=0)


@found.add("forward_forward", "mlp", "labels from 1", REFUSED)
def ff_shifted(watch: Watch) -> str | None:
    s = _blank(samples(1, 8, 8))
    return solves(watch, "forward_forward", row(nets.mlp(64)), (s.x, s.y + 1), s)


@found.add("forward_forward", "mlp", "fewer classes than the output layer", RIGHT_OR_WARNED | REFUSED)
def ff_fewer(watch: Watch) -> str | None:
    s = _blank(samples(1, 8, 8, classes=2))
    return solves(watch, "forward_forward", row(nets.mlp(64, (40, 40))), s.pair, s, fit={"epochs": 40})


# ---- batches -----------------------------------------------------------------------------------------------

ORDINARY = ("backprop", "backprop_ds", "mf_joint", "mono_forward", "local", "random_features", "dfa", "cafo")


def _batches() -> None:
    for trainer in ("mono_forward", "backprop", "dfa"):
        for text, size in (("batches of one", 1), ("last batch of one", 47), ("batches of 5", 5)):

            def attempt(watch: Watch, trainer: str = trainer, size: int = size) -> str | None:
                s = samples(12)
                net = row(nets.mlp())
                return solves(
                    watch, trainer, net, s.data, s, fit={"batch_size": size, "epochs": 6 if size == 1 else 60}
                )

            found.add(trainer, "mlp", text)(attempt)
    for trainer in ORDINARY:

        def larger(watch: Watch, trainer: str = trainer) -> str | None:
            s = samples(12)
            return as_by_hand(watch, trainer, nets.mlp, s.data, s, fit={"batch_size": 1000})

        found.add(trainer, "mlp", "batches larger than the data")(larger)


_batches()

NORMS: dict[str, tuple[MakeNet, tuple[int, ...]]] = {
    "BatchNorm1d": (lambda: _normed(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)), (12,)),
    "BatchNorm1d over time": (
        lambda: _normed(nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(40, 3)),
        (1, 12),
    ),
    "BatchNorm2d": (lambda: nets.conv2d(norm=True), (1, 8, 8)),
    "BatchNorm3d": (
        lambda: _normed(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.Flatten(), nn.Linear(32, 3)),
        (1, 4, 4, 4),
    ),
    "BatchNorm2d on maps of one pixel": (
        lambda: _normed(nn.Conv2d(1, 6, 8), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6, 3)),
        (1, 8, 8),
    ),
}


def _normed(*layers: nn.Module) -> hand.Net:
    torch.manual_seed(3)
    fresh = [type(m)(**_arguments(m)) if isinstance(m, nn.Linear) else m for m in layers]
    return nets.of([*fresh[:2], nn.ReLU(), *fresh[2:]], [0, len(layers)])


def _arguments(m: nn.Linear) -> dict[str, int]:
    return {"in_features": m.in_features, "out_features": m.out_features}


def _last_of_one() -> None:
    for name, (make, shape) in NORMS.items():
        for trainer in ("mono_forward", "backprop"):
            for text, n in (("last batch of one", 33), ("one sample", 1)):

                def attempt(
                    watch: Watch,
                    trainer: str = trainer,
                    make: MakeNet = make,
                    shape: tuple[int, ...] = shape,
                    n: int = n,
                ) -> str | None:
                    s = samples(*shape, n=n)
                    net = row(make())
                    at_least = 0.6 if n > 1 else 0.0
                    return solves(
                        watch, trainer, net, bpfree.data.TensorData(s.x, s.y, 3), s, fit={"batch_size": 16},
                        at_least=at_least,
                    )

                if trainer == "mono_forward" or name in ("BatchNorm1d", "BatchNorm2d"):
                    found.add(trainer, name, text, RIGHT_OR_REFUSED | RIGHT_OR_WARNED)(attempt)


_last_of_one()


@found.add("cafo", "conv2d with batch norm", "last batch of one")
def cafo_last_of_one(watch: Watch) -> str | None:
    s = samples(1, 8, 8, n=33)
    return solves(watch, "cafo", row(nets.conv2d(norm=True)), s.data, s, fit={"batch_size": 16}, at_least=0.6)


@found.add("mono_forward", "mlp", "one sample", RIGHT_OR_WARNED | REFUSED)
def one_sample(watch: Watch) -> str | None:
    s = samples(12, n=1)
    return as_by_hand(watch, "mono_forward", nets.mlp, bpfree.data.TensorData(s.x, s.y, 3), s)


# ---- scales ------------------------------------------------------------------------------------------------


def _scales() -> None:
    for trainer in ("mono_forward", "backprop", "cafo", "counter_current"):
        for text, factor in (("scaled by 1e-6", 1e-6), ("scaled by 1e3", 1e3)):

            def attempt(watch: Watch, trainer: str = trainer, factor: float = factor) -> str | None:
                s = samples(12)
                s = type(s)(s.x * factor, s.y, 3)
                return as_by_hand(watch, trainer, nets.mlp, s.data, s)

            found.add(trainer, "mlp", text, RIGHT_OR_WARNED)(attempt)


_scales()


@found.add("mono_forward", "mlp", "a feature that never varies")
def constant_feature(watch: Watch) -> str | None:
    s = samples(12)
    s.x[:, 4] = 0.7
    return as_by_hand(watch, "mono_forward", nets.mlp, s.data, s)


@found.add("mono_forward", "mlp", "a feature that never varies, standardized", REFUSED)
def constant_standardized(watch: Watch) -> str | None:
    s = samples(12)
    s.x[:, 4] = 0.7
    data = bpfree.data.TensorData(s.x, s.y, 3, tuple(s.x.mean(0).tolist()), tuple(s.x.std(0).tolist()))
    return as_by_hand(watch, "mono_forward", nets.mlp, data, s)


@found.add("mono_forward", "mlp", "scaled by 1e30", RIGHT_OR_WARNED | REFUSED)
def enormous(watch: Watch) -> str | None:
    s = samples(12)
    s = type(s)(s.x * 1e30, s.y, 3)
    trainer = trainer_of("mono_forward", row(nets.mlp()), watch)
    try:
        trainer.fit(s.data, epochs=2)
    except bpfree.Diverged:
        return None
    return None if torch.isfinite(trainer.model(s.x)).all() else "scores are not finite, and no word"


# ---- optimizers and precision ------------------------------------------------------------------------------


@found.add("mono_forward", "mlp", "optimizer replaced before fit", RIGHT_OR_REFUSED | RIGHT_OR_WARNED)
def own_optimizer(watch: Watch) -> str | None:
    s, net = samples(12), row(nets.mlp())
    trainer = trainer_of("mono_forward", net, watch)
    trainer.build((12,), 3)
    for name, block in zip(trainer.optimizers, trainer.cascade.units, strict=True):
        trainer.optimizers[name] = block.optimizer = torch.optim.SGD(block.parameters(), lr=1e-12)
    before = copy.deepcopy(net.state_dict())
    trainer.fit(s.data, epochs=3)
    moved = max((net.state_dict()[k] - v).abs().max().item() for k, v in before.items())
    return None if moved < 1e-9 else f"weights moved by {moved:.3g} under an optimizer with lr = 1e-12"


@found.add("mono_forward", "mlp", "lr of an optimizer changed before fit", RIGHT_OR_REFUSED | RIGHT_OR_WARNED)
def own_rate(watch: Watch) -> str | None:
    s, net = samples(12), row(nets.mlp())
    trainer = trainer_of("mono_forward", net, watch)
    trainer.build((12,), 3)
    for optimizer in trainer.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = 1e-12
    before = copy.deepcopy(net.state_dict())
    trainer.fit(s.data, epochs=3)
    moved = max((net.state_dict()[k] - v).abs().max().item() for k, v in before.items())
    return None if moved < 1e-9 else f"weights moved by {moved:.3g} with lr = 1e-12"


@found.add("mono_forward", "mlp", "lr_schedule cooldown, 3 epochs")
def cooldown(watch: Watch) -> str | None:
    s = samples(12)
    trainer = trainer_of("mono_forward", row(nets.mlp()), watch, lr_schedule="cooldown", lr=0.01)
    history = trainer.fit(s.data, epochs=3, batch_size=48)
    used = [row["lr"] for row in history.rows]
    return None if max(used) <= 1.0 and used == sorted(used, reverse=True) else f"rates rise: {used}"


for _precision in ("bfloat16",):

    @found.add("mono_forward", "mlp", "bfloat16")
    def low_precision(watch: Watch) -> str | None:
        s = samples(12)
        return solves(watch, "mono_forward", row(nets.mlp()), s.data, s, precision="bfloat16")

    @found.add("mono_forward", "conv3d", "bfloat16")
    def low_precision_3d(watch: Watch) -> str | None:
        s = samples(1, 4, 4, 4)
        return solves(watch, "mono_forward", row(nets.conv3d()), s.data, s, precision="bfloat16")


def _channels_last() -> None:
    for trainer in ("mono_forward", "backprop", "dfa"):
        for name in ("conv1d", "conv2d", "conv3d"):
            make, shape = NETS[name]

            def attempt(
                watch: Watch, trainer: str = trainer, make: MakeNet = make, shape: tuple[int, ...] = shape
            ) -> str | None:
                s = samples(*shape)
                return as_by_hand(watch, trainer, make, s.data, s, channels_last=True)

            if trainer == "mono_forward" or name == "conv2d":
                found.add(trainer, name, "channels_last", RIGHT_OR_REFUSED)(attempt)


_channels_last()


@found.add("mono_forward", "mlp", "trained twice goes on")
def twice(watch: Watch) -> str | None:
    s = samples(12)
    trainer = trainer_of("mono_forward", row(nets.mlp()), watch, lr=rates("mono_forward"))
    trainer.fit(s.data, epochs=20)
    trainer.fit(s.data, epochs=20)
    return learns(trainer, s.data)


@found.add("mono_forward", "mlp", "step without a number, dropout", RIGHT)
def same_mask(watch: Watch) -> str | None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3))
    trainer = trainer_of("mono_forward", net, watch, lr=1e-12)
    trainer.build((12,), 3)
    s = samples(12)
    first, second = (trainer.step(s.x, s.y)[0].item() for _ in range(2))
    return "two steps drew one mask" if first == second else None


@found.add("forward_forward", "mlp", "step without a number, negatives", RIGHT_OR_WARNED)
def same_negatives(watch: Watch) -> str | None:
    s = _blank(samples(1, 8, 8))
    trainer = trainer_of("forward_forward", row(nets.mlp(64)), watch, lr=1e-12, peer_weight=0.0)
    trainer.build((1, 8, 8), 3)
    first, second = (trainer.step(s.x, s.y)[0].item() for _ in range(2))
    return "two steps drew the same negatives" if abs(first - second) < 1e-9 else None


@found.add("mono_forward", "mlp", "steps follow the loop by hand")
def steps(watch: Watch) -> str | None:
    s = samples(12)
    trainer = trainer_of("mono_forward", row(nets.mlp()), watch, lr=0.01)
    trainer.build((12,), 3)
    for _ in range(5):
        trainer.step(s.x, s.y)
    by_hand = hand.mono_forward(nets.mlp(), watch.first, s.x, s.y, 5, 0.01)
    return uses_differ(trainer, by_hand.scores, s.data, s)


@found.add("mono_forward", "mlp", "step with a batch of one")
def step_of_one(watch: Watch) -> str | None:
    s = samples(12, n=1)
    trainer = trainer_of("mono_forward", row(nets.mlp()), watch, lr=0.01)
    trainer.build((12,), 3)
    trainer.step(s.x, s.y)
    by_hand = hand.mono_forward(nets.mlp(), watch.first, s.x, s.y, 1, 0.01)
    one = type(s)(s.x, s.y, 3)
    return uses_differ(trainer, by_hand.scores, one.data, one)


def cases() -> list[Case]:
    """All cases."""
    return found.all
