"""Trainers that are pickled or copied train like the original."""

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
from tests.helpers import PLAIN_TRAINERS, images, make_cnn, make_gnn, make_mlp, nodes, vectors


def pickled(trainer: Trainer) -> Trainer:
    copied = pickle.loads(pickle.dumps(trainer))
    assert isinstance(copied, Trainer)
    return copied


both = pytest.mark.parametrize("make_copy", [pickled, copy.deepcopy], ids=["pickle", "deepcopy"])


def assert_same_training(trainer: Trainer, copied: Trainer, data: Any) -> None:
    """Steps and a run have the same bits, and the two share no parameter."""
    for _ in range(3):
        for one in (trainer, copied):
            one.step(*data.batch(torch.arange(16)))
        assert_same_state(copied, trainer)
    assert all(
        p.data_ptr() != q.data_ptr()
        for p, q in zip(trainer.cascade.parameters(), copied.cascade.parameters(), strict=True)
    )
    histories = [one.fit(data, data, epochs=2, batch_size=16).rows for one in (trainer, copied)]
    assert histories[0] == histories[1]
    assert_same_state(copied, trainer)


def assert_same_state(copied: Trainer, trainer: Trainer) -> None:
    expected = trainer.cascade.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in copied.cascade.state_dict().items())


@both
@pytest.mark.parametrize("kind", PLAIN_TRAINERS.values(), ids=PLAIN_TRAINERS.keys())
def test_a_copy_trains_with_the_same_bits(
    kind: type[Trainer], make_copy: Callable[[Trainer], Trainer]
) -> None:
    trainer = kind(make_mlp(dropout=0.2), progress=False)
    trainer.fit(vectors(), epochs=1, batch_size=16)
    copied = make_copy(trainer)
    assert copied.settings == trainer.settings and copied.scaling == trainer.scaling
    assert_same_training(trainer, copied, vectors())


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
def test_a_copy_has_hooks_and_compiled_functions(
    kind: type[Trainer], settings: Any, make_copy: Callable[[Trainer], Trainer]
) -> None:
    from bpfree.nn import autoencoder

    net = autoencoder((1, 8, 8), (4, 4)) if kind is Autoencoder else make_cnn()
    trainer = kind(net, progress=False, **settings)
    trainer.fit(images(), epochs=1, batch_size=16)
    assert_same_training(trainer, make_copy(trainer), images())


@both
def test_a_trainer_that_was_not_built_is_copied(make_copy: Callable[[Trainer], Trainer]) -> None:
    trainer = MonoForward(make_mlp(), lr=0.02, progress=False)
    copied = make_copy(trainer)
    for one in (trainer, copied):
        one.fit(vectors(), epochs=1)
    assert_same_state(copied, trainer)


@both
@pytest.mark.parametrize(
    "kind", [k for k in TRAINERS.values() if issubclass(k, GraphTrainer)], ids=lambda k: k.id
)
def test_a_trainer_on_a_graph_is_copied(kind: type[Trainer], make_copy: Callable[[Trainer], Trainer]) -> None:
    trainer = kind(make_gnn(), progress=False)
    trainer.fit(nodes(), epochs=1)
    copied = make_copy(trainer)
    for one in (trainer, copied):
        one.fit(nodes(), epochs=2)
    assert_same_state(copied, trainer)


def test_a_parametrized_network_is_copied_and_not_pickled() -> None:
    net = make_mlp()
    nn.utils.parametrizations.weight_norm(net[1])
    trainer = MonoForward(net, progress=False)
    trainer.fit(vectors(), epochs=1)
    with pytest.raises(BadValue, match=r"1 is parametrized, which torch does not pickle: use save and load"):
        pickle.dumps(trainer)
    copied = copy.deepcopy(trainer)
    for one in (trainer, copied):
        one.fit(vectors(), epochs=1)
    for p, q in zip(trainer.cascade.parameters(), copied.cascade.parameters(), strict=True):
        assert torch.equal(p, q)
