"""Optimizers, and learning rates against their formulas."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, get_args

import pytest
import torch
from torch import nn

from bpfree import ForwardForward, Hooks, MonoForward
from bpfree.engine.settings import LRSchedule, lr_factor, make_optimizer, set_lr
from bpfree.trainers import TrainerSettings
from tests.helpers import make_mlp, vectors


@pytest.mark.parametrize("epochs", [1, 2, 5, 100])
def test_cosine_falls_from_one_towards_zero(epochs: int) -> None:
    found = [lr_factor("cosine", e, epochs) for e in range(epochs)]
    assert found == pytest.approx([(1 + math.cos(math.pi * e / epochs)) / 2 for e in range(epochs)])
    # PyTorch's own schedule is the same.
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for factor in found:
        assert optimizer.param_groups[0]["lr"] == pytest.approx(factor)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("epochs", [1, 2, 3, 10, 100])
def test_cooldown_is_constant_for_half_and_then_linear(epochs: int) -> None:
    for e in range(epochs):
        expected = 1.0 if e <= (epochs + 1) / 2 else 2 * (1 + epochs - e) / epochs
        assert lr_factor("cooldown", e, epochs) == expected


@pytest.mark.parametrize("schedule", get_args(LRSchedule))
def test_no_schedule_raises_the_rate(schedule: Any) -> None:
    for epochs in range(1, 21):
        found = [lr_factor(schedule, e, epochs) for e in range(epochs)]
        assert found[0] == 1.0
        assert all(0 < later <= now for now, later in pairwise(found))


def test_constant_is_constant() -> None:
    assert {lr_factor("constant", e, 7) for e in range(7)} == {1.0}


def test_rates_are_set_from_what_they_were_at_first() -> None:
    optimizers = [torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr) for lr in (0.1, 0.4)]
    for factor in (0.5, 0.25, 1.0):
        set_lr(optimizers, factor)
        assert [o.param_groups[0]["lr"] for o in optimizers] == pytest.approx([0.1 * factor, 0.4 * factor])


def test_each_epoch_trains_with_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.SGD.step

    def noting(self: torch.optim.SGD, *args: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", noting)
    trainer = MonoForward(make_mlp(), optimizer="sgd", lr=0.2, lr_schedule="cosine", progress=False)
    history = trainer.fit(vectors(), epochs=4, batch_size=40)
    factors = [(1 + math.cos(math.pi * e / 4)) / 2 for e in range(4)]
    assert [row["lr"] for row in history.rows] == pytest.approx([0.2 * f for f in factors])
    assert rates == pytest.approx([0.2 * f for f in factors for _ in range(2)])


def test_the_history_has_the_rate_of_what_trained() -> None:
    options: dict[str, Any] = {"lr": 0.1, "readout_lr": 0.5, "lr_schedule": "steps", "progress": False}
    trainer = ForwardForward(make_mlp(), schedule="greedy", **options)
    rows = trainer.fit(vectors(), epochs=2).rows
    assert [(row["stage"], row["lr"]) for row in rows] == [
        *[("block 1", 0.1), ("block 1", 0.025)],
        *[("block 2", 0.1), ("block 2", 0.025)],
        *[("readout", 0.5), ("readout", 0.125)],
    ]


def test_a_second_fit_starts_at_the_full_rate_again() -> None:
    trainer = MonoForward(make_mlp(), lr_schedule="cosine", progress=False)
    rates: list[float] = []

    def look(done: int, of: int, row: Any) -> None:
        rates.append(trainer.optimizers["block0"].param_groups[0]["lr"])

    for _ in range(2):
        assert trainer.fit(vectors(), epochs=3, hooks=Hooks(progress=look)).rows[0]["lr"] == 1e-3
        # A step by hand has the rate of the settings.
        assert trainer.optimizers["block0"].param_groups[0]["lr"] == 1e-3
    assert rates == pytest.approx([1e-3, 0.75e-3, 0.25e-3] * 2)


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_optimizers_are_fused_and_take_the_settings(name: Any, kind: type) -> None:
    settings = TrainerSettings(optimizer=name, lr=0.3, weight_decay=0.2, momentum=0.8)
    optimizer = make_optimizer([nn.Parameter(torch.zeros(2))], settings)
    assert type(optimizer) is kind
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["fused"]) == (0.3, 0.2, True)
    assert group.get("momentum", 0.8) == 0.8


def test_a_readout_has_a_rate_and_a_decay_of_its_own() -> None:
    trainer = ForwardForward(make_mlp(), readout_lr=0.5, readout_weight_decay=0.25, lr=0.1, progress=False)
    trainer.build((12,), 3)
    readout, block = (trainer.optimizers[k].param_groups[0] for k in ("readout.classifier", "block1"))
    assert (readout["lr"], readout["weight_decay"]) == (0.5, 0.25)
    assert (block["lr"], block["weight_decay"]) == (0.1, 3e-4)


@pytest.mark.parametrize("epochs", [1, 8, 100, 400])
def test_steps_quarter_the_rate_at_their_shares_of_the_epochs(epochs: int) -> None:
    found = [lr_factor("steps", e, epochs) for e in range(epochs)]
    assert found[0] == 1.0
    assert all(later in (now, now / 4, now / 16) for now, later in pairwise(found))
    if epochs == 100:
        drops = [e for e in range(1, 100) if found[e] < found[e - 1]]
        assert drops == [50, 75, 89, 94]
        assert found[-1] == 0.25**4
