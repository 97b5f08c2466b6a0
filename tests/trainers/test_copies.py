"""Trainers that are pickled, or copied, go on as the original does."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from bpfree import Autoencoder, BadValue, CounterCurrentLearning, ForwardForward, MonoForward, Trainer
from bpfree.trainers import TRAINERS, GraphTrainer
from tests.helpers import PLAIN_TRAINERS, images, make_cnn, make_gnn, make_mlp, nodes, snapshot, vectors


def pickled(trainer: Trainer) -> Trainer:
    return pickle.loads(pickle.dumps(trainer))  # type: ignore[no-any-return]


both = pytest.mark.parametrize("copied", [pickled, copy.deepcopy], ids=["pickle", "deepcopy"])


def assert_alike(trainer: Trainer, twin: Trainer, data: Any) -> None:
    """Both take the same steps, neither moves the other, and a run of each has the same bits."""
    for _ in range(3):
        for one in (trainer, twin):
            one.step(*data.batch(torch.arange(16)))
        ours, theirs = (one.cascade.state_dict() for one in (trainer, twin))
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert all(
        p.data_ptr() != q.data_ptr()
        for p, q in zip(trainer.cascade.parameters(), twin.cascade.parameters(), strict=True)
    )
    histories = [one.fit(data, data, epochs=2, batch_size=16).rows for one in (trainer, twin)]
    assert histories[0] == histories[1]
    ours, theirs = snapshot(trainer.cascade), snapshot(twin.cascade)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@both
@pytest.mark.parametrize("kind", PLAIN_TRAINERS.values(), ids=PLAIN_TRAINERS.keys())
def test_a_copy_goes_on_with_the_same_bits(kind: type[Trainer], copied: Callable[[Trainer], Trainer]) -> None:
    trainer = kind(make_mlp(dropout=0.2), progress=False)
    trainer.fit(vectors(), epochs=1, batch_size=16)
    twin = copied(trainer)
    assert twin.settings == trainer.settings and twin.scaling == trainer.scaling
    assert_alike(trainer, twin, vectors())


@both
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (MonoForward, {"compile": "eager"}),
        (MonoForward, {"channels_last": True}),
        (CounterCurrentLearning, {"clip": 1e-3}),
        (ForwardForward, {"optimizer": "adam", "peer_weight": 0.1}),
        (Autoencoder, {}),
    ],
    ids=["compiled", "channels last", "clipped", "peers", "autoencoder"],
)
def test_a_copy_has_what_a_state_does_not_hold(
    kind: type[Trainer], settings: Any, copied: Callable[[Trainer], Trainer]
) -> None:
    from bpfree.nn import autoencoder

    net = autoencoder((1, 8, 8), (4, 4)) if kind is Autoencoder else make_cnn()
    trainer = kind(net, progress=False, **settings)
    trainer.fit(images(), epochs=1, batch_size=16)
    assert_alike(trainer, copied(trainer), images())


@both
def test_a_trainer_that_was_not_built_is_copied(copied: Callable[[Trainer], Trainer]) -> None:
    trainer = MonoForward(make_mlp(), lr=0.02, progress=False)
    assert_alike_after_fit(trainer, copied(trainer))


def assert_alike_after_fit(trainer: Trainer, twin: Trainer) -> None:
    for one in (trainer, twin):
        one.fit(vectors(), epochs=1)
    ours, theirs = snapshot(trainer.cascade), snapshot(twin.cascade)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@both
@pytest.mark.parametrize(
    "kind", [k for k in TRAINERS.values() if issubclass(k, GraphTrainer)], ids=lambda k: k.id
)
def test_a_trainer_on_a_graph_is_copied(kind: type[Trainer], copied: Callable[[Trainer], Trainer]) -> None:
    trainer = kind(make_gnn(), progress=False)
    trainer.fit(nodes(), epochs=1)
    twin = copied(trainer)
    for one in (trainer, twin):
        one.fit(nodes(), epochs=2)
    ours, theirs = snapshot(trainer.cascade), snapshot(twin.cascade)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_parametrized_network_is_copied_and_not_pickled() -> None:
    net = make_mlp()
    nn.utils.parametrizations.weight_norm(net[1])
    trainer = MonoForward(net, progress=False)
    trainer.fit(vectors(), epochs=1)
    with pytest.raises(BadValue, match=r"1 is parametrized, which torch does not pickle: use save and load"):
        pickle.dumps(trainer)
    twin = copy.deepcopy(trainer)
    for one in (trainer, twin):
        one.fit(vectors(), epochs=1)
    for ours, theirs in zip(trainer.cascade.parameters(), twin.cascade.parameters(), strict=True):
        assert torch.equal(ours, theirs)
