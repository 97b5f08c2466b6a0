"""Batches that a network cannot take are found out before training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from bpfree import BadValue, ForwardForward, Hooks, MonoForward, Trainer
from bpfree.bench.config import cells
from bpfree.trainers import FitSettings
from tests.helpers import CLASSES, PLAIN_TRAINERS, images, make_cnn, make_mlp, snapshot, vectors


def normalized(norm: Callable[[], nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(12, 16), norm(), nn.ReLU(), nn.Linear(16, 16), norm(), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(16, CLASSES))


def batch_norm() -> nn.Module:
    return nn.BatchNorm1d(16)


def never_trained(done: int, of: int, row: dict[str, Any]) -> None:
    raise AssertionError("an epoch was trained")


@pytest.mark.parametrize("kind", PLAIN_TRAINERS.values(), ids=PLAIN_TRAINERS.keys())
def test_a_last_batch_of_one_is_refused_before_training_or_dropped(kind: type[Trainer]) -> None:
    trainer = kind(normalized(batch_norm), progress=False)
    trainer.build((12,), CLASSES)
    before = snapshot(trainer.cascade)
    with pytest.raises(BadValue, match=r"on a batch of 1, .*Expected more than 1 value.*drop_last = True"):
        trainer.fit(vectors(33), epochs=1, batch_size=16, hooks=Hooks(progress=never_trained))
    assert all(torch.equal(t, before[n]) for n, t in trainer.cascade.state_dict().items())
    assert trainer.scaling is None
    trainer.fit(vectors(33), epochs=1, batch_size=16, drop_last=True)


@pytest.mark.parametrize("kind", PLAIN_TRAINERS.values(), ids=PLAIN_TRAINERS.keys())
def test_one_map_is_more_than_one_value(kind: type[Trainer]) -> None:
    kind(make_cnn(batch_norm=True), progress=False).fit(images(17), epochs=1, batch_size=16)


@pytest.mark.parametrize(
    ("norm", "n", "batch_size", "message"),
    [
        (lambda: nn.GroupNorm(16, 16), 33, 16, "drop_last = True, or another batch_size"),
        (batch_norm, 40, 1, "raise batch_size"),
        (batch_norm, 1, 16, "give more samples"),
        (lambda: nn.BatchNorm1d(16, track_running_stats=False), 17, 16, "drop_last"),
    ],
)
def test_other_ways_to_a_batch_of_one(norm: Any, n: int, batch_size: int, message: str) -> None:
    with pytest.raises(BadValue, match=message):
        MonoForward(normalized(norm), progress=False).fit(vectors(n), epochs=1, batch_size=batch_size)


def test_a_map_of_one_element_has_no_statistics_of_its_own() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 8), nn.InstanceNorm2d(4, track_running_stats=True), nn.ReLU(),
                        nn.Flatten(), nn.Linear(4, CLASSES))  # fmt: skip
    with pytest.raises(BadValue, match="more than 1 spatial element"):
        MonoForward(net, progress=False).fit(images(), epochs=1)


def test_one_sample_is_not_evaluated_by_statistics_of_the_batch() -> None:
    net = normalized(lambda: nn.BatchNorm1d(16, track_running_stats=False))
    trainer = MonoForward(net, progress=False)
    trainer.fit(vectors(32), vectors(40), epochs=1, batch_size=16)
    many = vectors(1025)
    for use in (
        lambda: trainer.predict(many.x[:1]),
        lambda: trainer.evaluate(many),
        lambda: trainer.fit(vectors(32), many, epochs=1, hooks=Hooks(progress=never_trained)),
    ):
        with pytest.raises(
            BadValue, match=r"one sample alone cannot be evaluated: .*track_running_stats = True"
        ):
            use()


def test_what_is_dropped_is_the_rest_of_each_epochs_own_order(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    trainer, data = MonoForward(make_mlp(), progress=False), vectors(39)
    batch = type(data).batch

    def noted(self: Any, indices: torch.Tensor, generator: Any = None) -> Any:
        seen.append(indices.tolist())
        return batch(self, indices, generator)

    monkeypatch.setattr(type(data), "batch", noted)
    history = trainer.fit(data, epochs=2, batch_size=16, drop_last=True)
    steps = [indices for indices in seen if len(indices) == 16][-4:]
    assert [row["step"] for row in history.rows] == [2, 4]
    assert len({*steps[0], *steps[1]}) == len({*steps[2], *steps[3]}) == 32
    assert {*steps[0], *steps[1]} != {*steps[2], *steps[3]}


def test_dropping_nothing_changes_no_bit() -> None:
    runs = []
    for drop_last in (False, True):
        trainer = MonoForward(make_mlp(dropout=0.3), progress=False)
        trainer.fit(vectors(48), epochs=2, batch_size=16, drop_last=drop_last)
        runs.append(snapshot(trainer.cascade))
    assert all(torch.equal(t, runs[1][n]) for n, t in runs[0].items())


def test_dropping_all_is_refused() -> None:
    with pytest.raises(BadValue, match=r"drop_last = True with batch_size = 64: 40 samples make no batch"):
        MonoForward(make_mlp(), progress=False).fit(vectors(40), epochs=1, batch_size=64, drop_last=True)


def test_steps_of_an_epoch() -> None:
    fit = FitSettings(batch_size=16)
    assert [fit.steps(n) for n in (15, 16, 17)] == [1, 1, 2]
    assert [replace(fit, drop_last=True).steps(n) for n in (15, 16, 17)] == [0, 1, 1]


def test_a_cell_that_drops_nothing_keeps_its_name() -> None:
    config = {
        "dataset": {"name": "digits"},
        "net": {"name": "mlp", "hidden": [8]},
        "trainer": {"id": "mono_forward"},
    }
    plain, same, other = (
        cells({**config, "fit": fit})[0] for fit in ({}, {"drop_last": False}, {"drop_last": True})
    )
    assert "drop_last" not in plain.record()["fit"] and plain.id == same.id != other.id


def test_trying_a_batch_of_one_repeats_no_warning() -> None:
    net = make_mlp()
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight)
    with pytest.warns(UserWarning, match="draws the weights") as found:
        ForwardForward(net, progress=False).fit(vectors(33), epochs=1, batch_size=16)
    assert len(found) == 1
    assert found[0].filename == __file__


def test_a_network_that_cannot_be_copied_is_trained_all_the_same() -> None:
    class Sealed(nn.Identity):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("it cannot be copied")

    net = make_mlp()
    net.insert(2, Sealed())
    MonoForward(net, progress=False).fit(vectors(17), epochs=1, batch_size=16)
