"""What blocks learn belongs to one of them alone; what nobody learns may be shared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bpfree import (
    Backprop,
    BadValue,
    Block,
    Cascade,
    CascadedForward,
    CounterCurrentLearning,
    DirectFeedbackAlignment,
    ForwardForward,
    Local,
    MFJoint,
    MonoForward,
    RandomFeatures,
    localize,
)
from bpfree.core import sharing
from bpfree.core.readouts import BlockReadout, ClassifierReadout
from bpfree.losses import Goodness, LocalCrossEntropy
from bpfree.testing import assert_local
from bpfree.trainers import Trainer
from tests.helpers import CLASSES, PLAIN_TRAINERS, easy, make_mlp

LOCAL = (MonoForward, Local, ForwardForward, CounterCurrentLearning, DirectFeedbackAlignment)


def net(
    activation: Callable[[], nn.Module] = nn.ReLU, dropout: Callable[[], nn.Module] | None = None
) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Linear(12, 12), activation()] + ([dropout()] if dropout is not None else [])
    return nn.Sequential(*layers, nn.Linear(12, CLASSES))


def fitted(kind: type[Trainer], model: nn.Module, **settings: Any) -> Trainer:
    trainer = kind(model, progress=False, **settings)
    trainer.fit(easy(), epochs=1, batch_size=40)
    return trainer


@pytest.mark.parametrize("kind", PLAIN_TRAINERS.values(), ids=PLAIN_TRAINERS.keys())
def test_an_activation_or_dropout_that_is_used_often_is_as_good_as_many(kind: type[Trainer]) -> None:
    relu, dropout = nn.ReLU(), nn.Dropout(0.2)
    shared = fitted(kind, net(lambda: relu, lambda: dropout))
    apart = fitted(kind, net(nn.ReLU, lambda: nn.Dropout(0.2)))
    ours, theirs = shared.cascade.state_dict(), apart.cascade.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert ours.keys() == theirs.keys()
    assert torch.equal(shared.model.eval()(easy().x), apart.model.eval()(easy().x))


def test_a_localized_net_with_one_activation_computes_what_the_net_computes() -> None:
    relu = nn.ReLU()
    model = net(lambda: relu)
    cascade = localize(model).eval()
    cascade.build(easy().x, CLASSES)
    assert torch.equal(cascade(easy().x), model(easy().x))


def one_layer(model: nn.Sequential) -> None:
    model[4] = model[2]


def one_parameter(model: nn.Sequential) -> None:
    model[4].weight = model[0].weight


def one_memory(model: nn.Sequential) -> None:
    model[4].weight = nn.Parameter(model[0].weight.data.T)


def one_norm(model: nn.Sequential) -> None:
    model[1] = model[3] = nn.LayerNorm(12)


@pytest.mark.parametrize("kind", LOCAL)
@pytest.mark.parametrize(
    ("tie", "message"),
    [
        (one_layer, r"the weight 2\.weight = 4\.weight is used in block (1\.)?2 and in block (1\.)?3"),
        (one_parameter, r"the weight 0\.weight = 4\.weight is used in block (1\.)?1 and in block (1\.)?3"),
        (one_memory, r"0\.weight and 4\.weight are one tensor, used in block (1\.)?1 and in block (1\.)?3"),
        (one_norm, r"the weight 1\.weight = 3\.weight is used in block (1\.)?1 and in block (1\.)?2"),
    ],
)
def test_weights_in_two_blocks_are_refused_by_name(kind: type[Trainer], tie: Any, message: str) -> None:
    model = net()
    tie(model)
    with pytest.raises(BadValue, match=message):
        fitted(kind, model)


def test_the_law_of_locality_finds_tied_weights_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    one_parameter(model)
    monkeypatch.setattr("bpfree.trainers.building.check_weights", lambda *_: None)
    with pytest.raises(AssertionError, match=r"block 1: body\.0\.weight and block 3: body\.0\.weight share"):
        assert_local(MonoForward(model, progress=False), easy().x, easy().y)


def test_weights_tied_with_the_output_layer_are_refused_where_that_learns_apart() -> None:
    square = nn.Sequential(nn.Linear(12, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, CLASSES))
    square[4].weight = square[2].weight
    with pytest.raises(BadValue, match=r"2\.weight = 4\.weight is used in block 2 and in block 3"):
        fitted(CounterCurrentLearning, square)
    with pytest.raises(BadValue, match=r"2\.weight = 4\.weight is used in the fixed front of block 2"):
        fitted(RandomFeatures, square)
    # Mono-Forward trains them in one block, so autograd adds both gradients; the closed form would not.
    with pytest.raises(BadValue, match=r"used in block 2 and in the head of block 2"):
        fitted(MonoForward, square, gradients="analytic")
    fitted(MonoForward, square)
    assert square[4].weight is square[2].weight


def test_tied_weights_that_learn_in_one_block_or_nowhere_are_right(tmp_path: Path) -> None:
    for kind in (Backprop, MFJoint, CascadedForward, RandomFeatures):
        model = net()
        one_layer(model)
        fitted(kind, model).save(tmp_path / "file")
    model = net()
    one_layer(model)
    twin = net()
    one_layer(twin)
    trainer = Backprop(model, progress=False, optimizer="sgd", lr=0.1, momentum=0.0)
    trainer.build((12,), CLASSES)
    trainer.step(easy().x, easy().y)
    nn.functional.cross_entropy(twin(easy().x), easy().y).backward()
    for ours, p in zip(model.parameters(), twin.parameters(), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(ours, p - 0.1 * p.grad)
    frozen = net()
    one_layer(frozen)
    frozen[2].requires_grad_(False)
    fitted(MonoForward, frozen)


def test_two_parameters_in_one_memory_are_refused_even_in_one_block() -> None:
    model = net()
    one_memory(model)
    with pytest.raises(BadValue, match=r"0\.weight and 4\.weight are two parameters in one memory"):
        fitted(Backprop, model)


def test_parts_of_one_memory_that_do_not_meet_are_no_tie() -> None:
    model, buffer = net(), torch.randn(12, 36) / 4
    for k, layer in enumerate((model[0], model[2], model[4])):
        layer.weight = nn.Parameter(buffer[:, 12 * k : 12 * k + 12])
    parts = sharing.parts_of(localize(model))
    assert sharing.shared_weights(parts) == []
    fitted(MonoForward, model)


def test_running_statistics_are_not_shared_either() -> None:
    model = net()
    model[1] = model[3] = nn.BatchNorm1d(12, affine=False)
    with pytest.raises(
        BadValue, match="block 1 and block 2 share a normalization layer with running statistics"
    ):
        fitted(MonoForward, model)


# ---- objects given twice ---------------------------------------------------------------------------------


def cascade(*blocks: Block, **readouts: Any) -> Cascade:
    return Cascade(blocks, readouts or {"last": BlockReadout()})


def test_one_loss_for_several_blocks_is_refused_by_their_numbers() -> None:
    loss = LocalCrossEntropy()
    message = "block 1, block 2 and block 3 are given one loss object"
    with pytest.raises(BadValue, match=message):
        cascade(*(Block(nn.Linear(12, 12), loss) for _ in range(3)))
    # Also where heads of unequal widths would blame the network.
    with pytest.raises(BadValue, match="block 1 and block 2 are given one loss object"):
        cascade(Block(nn.Linear(12, 8), loss), Block(nn.Linear(8, 6), loss))
    goodness = Goodness()
    with pytest.raises(BadValue, match="block 1 and block 2 are given one loss object"):
        localize(make_mlp(), loss=lambda: goodness)


def test_one_block_readout_head_or_body_in_two_places_is_refused() -> None:
    block, readout = Block(nn.Linear(12, 12), LocalCrossEntropy()), ClassifierReadout()
    with pytest.raises(BadValue, match="block 1 and block 2 are given one block object"):
        cascade(block, block)
    with pytest.raises(BadValue, match="readout 'a' and readout 'b' are given one readout object"):
        cascade(block, a=readout, b=readout)
    head = nn.Linear(12, CLASSES)
    heads = cascade(*(Block(nn.Linear(12, 12), LocalCrossEntropy(head)) for _ in range(2)))
    with pytest.raises(
        BadValue, match=r"blocks\.0\.loss\.head\.weight = blocks\.1\.loss\.head\.weight is used in"
    ):
        fitted(Local, heads)
    body = nn.Linear(12, 12)
    bodies = cascade(*(Block(body, LocalCrossEntropy()) for _ in range(2)))
    with pytest.raises(
        BadValue, match=r"blocks\.0\.body\.weight = blocks\.1\.body\.weight is used in block 1"
    ):
        fitted(Local, bodies)
    relu = nn.ReLU()
    fitted(Local, cascade(*(Block(relu, LocalCrossEntropy()) for _ in range(2))))


def test_localize_refuses_one_loss_for_several_blocks() -> None:
    loss = LocalCrossEntropy()
    with pytest.raises(BadValue, match="block 1 and block 2 are given one loss object"):
        localize(make_mlp(16, 16), loss=lambda: loss)
