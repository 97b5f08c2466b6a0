"""Direct feedback alignment: agreement with backpropagation, updates of single blocks, and settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bpfree
from bpfree import DirectFeedbackAlignment
from bpfree.losses import DirectFeedback
from tests.helpers import CLASSES, make_mlp

X = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(20) % 3


def linear_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3))


def make(net: nn.Module, **settings: Any) -> DirectFeedbackAlignment:
    trainer = DirectFeedbackAlignment(net, progress=False, **settings)
    trainer.build(X.shape[1:], 3)
    return trainer


@pytest.mark.parametrize("last_block", ["exact", "feedback"])
def test_a_linear_network_with_the_true_matrices_agrees_with_backpropagation(last_block: str) -> None:
    net, reference = linear_net(), linear_net()
    trainer = make(net, optimizer="sgd", momentum=0.0, lr=0.1, last_block=last_block)
    second, output = reference[1].weight, reference[2].weight
    true_matrices = [output @ second, output]
    feedback = [loss for loss in trainer.cascade.losses if isinstance(loss, DirectFeedback)]
    assert len(feedback) == (1 if last_block == "exact" else 2)
    for loss, matrix in zip(feedback, true_matrices, strict=False):
        loss.matrix.copy_(matrix.detach())
    F.cross_entropy(reference(X), Y).backward()
    with torch.no_grad():
        for p in reference.parameters():
            p -= 0.1 * p.grad
    trainer.step(X, Y)
    for p, expected in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, expected)


def test_the_gradient_of_a_block_is_the_projected_error_over_the_batch() -> None:
    net = linear_net()
    trainer = make(net, optimizer="sgd", momentum=0.0, lr=1.0)
    weight, scores = net[0].weight.detach().clone(), net(X).detach()
    matrix = trainer.cascade.losses[0].matrix
    torch.testing.assert_close(matrix.norm(dim=1), torch.ones(3))
    error = scores.softmax(1) - F.one_hot(Y, 3)
    trainer.step(X, Y)
    torch.testing.assert_close(weight - net[0].weight, (error @ matrix / 20).T @ X)


def test_no_gradient_crosses_a_block_boundary() -> None:
    trainer = make(bpfree.nn.mlp([6, 5, 5, 3]))
    (joint,) = trainer.cascade.units
    for k, inner in enumerate(joint.parts):
        losses = joint.objective(X, Y, None).losses
        losses[k].backward()
        inside = {id(p) for p in inner.parameters()}
        for name, p in trainer.cascade.named_parameters():
            assert (p.grad is not None) == (id(p) in inside), name
        trainer.cascade.zero_grad(set_to_none=True)


def test_normalization_processes_each_batch_once() -> None:
    torch.manual_seed(0)
    trainer = DirectFeedbackAlignment(bpfree.nn.cafo_cnn((1, 8, 8), 3, (4, 6)), progress=False)
    trainer.build((1, 8, 8), 3)
    trainer.step(torch.rand(10, 1, 8, 8), torch.arange(10) % 3)
    norms = [m for m in trainer.net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [int(norm.num_batches_tracked) for norm in norms] == [1, 1]


def test_feedback_has_its_own_seed_and_is_saved() -> None:
    matrices = [
        make(linear_net(), seed=seed, feedback_seed=feedback_seed).cascade.losses[0].matrix
        for seed, feedback_seed in [(0, 0), (1, 0), (0, 1)]
    ]
    assert torch.equal(matrices[0], matrices[1])
    assert not torch.equal(matrices[0], matrices[2])
    assert any("matrix" in name for name in make(linear_net()).cascade.state_dict())


def test_the_projected_error_aligns_with_the_gradient_in_training() -> None:
    torch.manual_seed(0)
    trainer = make(bpfree.nn.mlp([6, 32, 32, 3]), lr=3e-3)
    first = trainer.diagnose(X, Y)["feedback_cos"]
    for number in range(200):
        trainer.step(X, Y, number)
    last = trainer.diagnose(X, Y)["feedback_cos"]
    assert len(first) == 1
    assert last[0] > max(first[0], 0.05)


def test_blocks_of_equal_width_have_different_matrices() -> None:
    trainer = DirectFeedbackAlignment(make_mlp(16, 16, 16), progress=False)
    trainer.build((12,), CLASSES)
    error = torch.eye(CLASSES)
    losses = trainer.cascade.units[0].losses
    first, second = (loss.delta(error) for loss in losses if isinstance(loss, DirectFeedback))
    assert first.shape == second.shape
    assert F.cosine_similarity(first.flatten(), second.flatten(), 0).abs() < 0.5
