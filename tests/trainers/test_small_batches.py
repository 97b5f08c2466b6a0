"""Batches on which a network cannot be trained are refused before training."""

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


def no_epoch(done: int, total: int, row: dict[str, Any]) -> None:
    raise AssertionError("an epoch was trained")


@pytest.mark.parametrize("kind", PLAIN_TRAINERS.values(), ids=PLAIN_TRAINERS.keys())
def test_a_last_batch_of_one_is_refused_before_training_or_dropped(kind: type[Trainer]) -> None:
    trainer = kind(normalized(batch_norm), progress=False)
    trainer.build((12,), CLASSES)
    before = snapshot(trainer.cascade)
    with pytest.raises(BadValue, match=r"on a batch of 1, .*Expected more than 1 value.*drop_last = True"):
        trainer.fit(vectors(33), epochs=1, batch_size=16, hooks=Hooks(progress=no_epoch))
    assert all(torch.equal(t, before[n]) for n, t in trainer.cascade.state_dict().items())
    assert trainer.scaling is None
    trainer.fit(vectors(33), epochs=1, batch_size=16, drop_last=True)


@pytest.mark.parametrize("kind", PLAIN_TRAINERS.values(), ids=PLAIN_TRAINERS.keys())
def test_a_batch_of_one_image_has_several_values_per_channel(kind: type[Trainer]) -> None:
    kind(make_cnn(batch_norm=True), progress=False).fit(images(17), epochs=1, batch_size=16)


@pytest.mark.parametrize(
    ("norm", "n", "batch_size", "message"),
    [
        (lambda: nn.GroupNorm(16, 16), 33, 16, "drop_last = True, or another batch_size"),
        (batch_norm, 40, 1, "raise batch_size"),
        (batch_norm, 1, 16, "pass more samples"),
        (lambda: nn.BatchNorm1d(16, track_running_stats=False), 17, 16, "drop_last"),
    ],
)
def test_other_batches_of_one_are_refused(norm: Any, n: int, batch_size: int, message: str) -> None:
    with pytest.raises(BadValue, match=message):
        MonoForward(normalized(norm), progress=False).fit(vectors(n), epochs=1, batch_size=batch_size)


def test_instance_norm_of_one_element_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 8), nn.InstanceNorm2d(4, track_running_stats=True), nn.ReLU(),
                        nn.Flatten(), nn.Linear(4, CLASSES))  # fmt: skip
    with pytest.raises(BadValue, match="more than 1 spatial element"):
        MonoForward(net, progress=False).fit(images(), epochs=1)


def test_a_sample_is_not_evaluated_with_statistics_of_a_batch_of_one() -> None:
    net = normalized(lambda: nn.BatchNorm1d(16, track_running_stats=False))
    trainer = MonoForward(net, progress=False)
    trainer.fit(vectors(32), vectors(40), epochs=1, batch_size=16)
    many = vectors(1025)
    for use in (
        lambda: trainer.predict(many.x[:1]),
        lambda: trainer.evaluate(many),
        lambda: trainer.fit(vectors(32), many, epochs=1, hooks=Hooks(progress=no_epoch)),
    ):
        with pytest.raises(
            BadValue, match=r"one sample alone cannot be evaluated: .*track_running_stats = True"
        ):
            use()


def test_each_epoch_drops_the_last_samples_of_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[list[int]] = []
    trainer, data = MonoForward(make_mlp(), progress=False), vectors(39)
    batch = type(data).batch

    def recording(self: Any, indices: torch.Tensor, generator: Any = None) -> Any:
        batches.append(indices.tolist())
        return batch(self, indices, generator)

    monkeypatch.setattr(type(data), "batch", recording)
    history = trainer.fit(data, epochs=2, batch_size=16, drop_last=True)
    steps = [indices for indices in batches if len(indices) == 16][-4:]
    assert [row["step"] for row in history.rows] == [2, 4]
    assert len({*steps[0], *steps[1]}) == len({*steps[2], *steps[3]}) == 32
    assert {*steps[0], *steps[1]} != {*steps[2], *steps[3]}


def test_drop_last_without_a_short_batch_changes_no_bit() -> None:
    runs = []
    for drop_last in (False, True):
        trainer = MonoForward(make_mlp(dropout=0.3), progress=False)
        trainer.fit(vectors(48), epochs=2, batch_size=16, drop_last=drop_last)
        runs.append(snapshot(trainer.cascade))
    assert all(torch.equal(t, runs[1][n]) for n, t in runs[0].items())


def test_drop_last_that_leaves_no_batch_is_refused() -> None:
    with pytest.raises(BadValue, match=r"drop_last = True with batch_size = 64: 40 samples make no batch"):
        MonoForward(make_mlp(), progress=False).fit(vectors(40), epochs=1, batch_size=64, drop_last=True)


def test_number_of_steps_in_an_epoch() -> None:
    fit = FitSettings(batch_size=16)
    assert [fit.steps(n) for n in (15, 16, 17)] == [1, 1, 2]
    assert [replace(fit, drop_last=True).steps(n) for n in (15, 16, 17)] == [0, 1, 1]


def test_the_default_of_drop_last_does_not_change_the_id_of_a_cell() -> None:
    config = {
        "dataset": {"name": "digits"},
        "net": {"name": "mlp", "hidden": [8]},
        "trainer": {"id": "mono_forward"},
    }
    default, same, other = (
        cells({**config, "fit": fit})[0] for fit in ({}, {"drop_last": False}, {"drop_last": True})
    )
    assert "drop_last" not in default.record()["fit"] and default.id == same.id != other.id


def test_the_trial_step_repeats_no_warning() -> None:
    net = make_mlp()
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight)
    with pytest.warns(UserWarning, match="replaces the weights") as caught:
        ForwardForward(net, progress=False).fit(vectors(33), epochs=1, batch_size=16)
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_a_network_that_cannot_be_copied_is_trained() -> None:
    class NotCopyable(nn.Identity):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("it cannot be copied")

    net = make_mlp()
    net.insert(2, NotCopyable())
    MonoForward(net, progress=False).fit(vectors(17), epochs=1, batch_size=16)
