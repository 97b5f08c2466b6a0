"""Trainable parameters must be in one block only; modules without trainable parameters may be shared."""

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
def test_a_shared_activation_or_dropout_equals_separate_ones(kind: type[Trainer]) -> None:
    relu, dropout = nn.ReLU(), nn.Dropout(0.2)
    shared = fitted(kind, net(lambda: relu, lambda: dropout))
    separate = fitted(kind, net(nn.ReLU, lambda: nn.Dropout(0.2)))
    state, expected = shared.cascade.state_dict(), separate.cascade.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert state.keys() == expected.keys()
    assert torch.equal(shared.model.eval()(easy().x), separate.model.eval()(easy().x))


def test_localize_preserves_the_output_of_a_net_with_a_shared_activation() -> None:
    relu = nn.ReLU()
    model = net(lambda: relu)
    cascade = localize(model).eval()
    cascade.build(easy().x, CLASSES)
    assert torch.equal(cascade(easy().x), model(easy().x))


def share_layer(model: nn.Sequential) -> None:
    model[4] = model[2]


def share_parameter(model: nn.Sequential) -> None:
    model[4].weight = model[0].weight


def share_memory(model: nn.Sequential) -> None:
    model[4].weight = nn.Parameter(model[0].weight.data.T)


def share_norm(model: nn.Sequential) -> None:
    model[1] = model[3] = nn.LayerNorm(12)


@pytest.mark.parametrize("kind", LOCAL)
@pytest.mark.parametrize(
    ("tie", "message"),
    [
        (share_layer, r"the weight 2\.weight = 4\.weight is used in block (1\.)?2 and in block (1\.)?3"),
        (share_parameter, r"the weight 0\.weight = 4\.weight is used in block (1\.)?1 and in block (1\.)?3"),
        (share_memory, r"0\.weight and 4\.weight are one tensor, used in block (1\.)?1 and in block (1\.)?3"),
        (share_norm, r"the weight 1\.weight = 3\.weight is used in block (1\.)?1 and in block (1\.)?2"),
    ],
)
def test_weights_in_two_blocks_raise_an_error_with_their_names(
    kind: type[Trainer], tie: Any, message: str
) -> None:
    model = net()
    tie(model)
    with pytest.raises(BadValue, match=message):
        fitted(kind, model)


def test_assert_local_detects_tied_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    share_parameter(model)
    monkeypatch.setattr("bpfree.trainers.building.check_weights", lambda *_: None)
    with pytest.raises(AssertionError, match=r"block 1: body\.0\.weight and block 3: body\.0\.weight share"):
        assert_local(MonoForward(model, progress=False), easy().x, easy().y)


def test_weights_tied_with_the_output_layer_raise_an_error_if_it_is_updated_separately() -> None:
    square = nn.Sequential(nn.Linear(12, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, CLASSES))
    square[4].weight = square[2].weight
    with pytest.raises(BadValue, match=r"2\.weight = 4\.weight is used in block 2 and in block 3"):
        fitted(CounterCurrentLearning, square)
    with pytest.raises(BadValue, match=r"2\.weight = 4\.weight is used in the fixed front of block 2"):
        fitted(RandomFeatures, square)
    # Both are in one block of Mono-Forward. Autograd sums their gradients; the closed form does not.
    with pytest.raises(BadValue, match=r"used in block 2 and in the head of block 2"):
        fitted(MonoForward, square, gradients="analytic")
    fitted(MonoForward, square)
    assert square[4].weight is square[2].weight


def test_tied_weights_in_one_block_or_without_gradient_are_allowed(tmp_path: Path) -> None:
    for kind in (Backprop, MFJoint, CascadedForward, RandomFeatures):
        model = net()
        share_layer(model)
        fitted(kind, model).save(tmp_path / "file")
    model = net()
    share_layer(model)
    reference = net()
    share_layer(reference)
    trainer = Backprop(model, progress=False, optimizer="sgd", lr=0.1, momentum=0.0)
    trainer.build((12,), CLASSES)
    trainer.step(easy().x, easy().y)
    nn.functional.cross_entropy(reference(easy().x), easy().y).backward()
    for updated, p in zip(model.parameters(), reference.parameters(), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(updated, p - 0.1 * p.grad)
    frozen = net()
    share_layer(frozen)
    frozen[2].requires_grad_(False)
    fitted(MonoForward, frozen)


def test_two_parameters_that_share_memory_raise_an_error_even_in_one_block() -> None:
    model = net()
    share_memory(model)
    with pytest.raises(BadValue, match=r"0\.weight and 4\.weight are two parameters that share memory"):
        fitted(Backprop, model)


def test_parameters_without_common_elements_of_one_storage_are_not_tied() -> None:
    model, buffer = net(), torch.randn(12, 36) / 4
    for k, layer in enumerate((model[0], model[2], model[4])):
        layer.weight = nn.Parameter(buffer[:, 12 * k : 12 * k + 12])
    parts = sharing.separate_parts(localize(model))
    assert sharing.shared_weights(parts) == []
    fitted(MonoForward, model)


def test_shared_running_statistics_raise_an_error() -> None:
    model = net()
    model[1] = model[3] = nn.BatchNorm1d(12, affine=False)
    with pytest.raises(
        BadValue, match="block 1 and block 2 share a normalization layer with running statistics"
    ):
        fitted(MonoForward, model)


# ---- objects used twice ----------------------------------------------------------------------------------


def cascade(*blocks: Block, **readouts: Any) -> Cascade:
    return Cascade(blocks, readouts or {"last": BlockReadout()})


def test_a_loss_in_several_blocks_raises_an_error_with_their_numbers() -> None:
    loss = LocalCrossEntropy()
    message = "block 1, block 2 and block 3 have the same loss object"
    with pytest.raises(BadValue, match=message):
        cascade(*(Block(nn.Linear(12, 12), loss) for _ in range(3)))
    # This error comes before the one about heads of different widths.
    with pytest.raises(BadValue, match="block 1 and block 2 have the same loss object"):
        cascade(Block(nn.Linear(12, 8), loss), Block(nn.Linear(8, 6), loss))
    goodness = Goodness()
    with pytest.raises(BadValue, match="block 1 and block 2 have the same loss object"):
        localize(make_mlp(), loss=lambda: goodness)


def test_a_block_readout_head_or_body_used_twice_raises_an_error() -> None:
    block, readout = Block(nn.Linear(12, 12), LocalCrossEntropy()), ClassifierReadout()
    with pytest.raises(BadValue, match="block 1 and block 2 have the same block object"):
        cascade(block, block)
    with pytest.raises(BadValue, match="readout 'a' and readout 'b' have the same readout object"):
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


def test_localize_raises_an_error_for_a_loss_in_several_blocks() -> None:
    loss = LocalCrossEntropy()
    with pytest.raises(BadValue, match="block 1 and block 2 have the same loss object"):
        localize(make_mlp(16, 16), loss=lambda: loss)
