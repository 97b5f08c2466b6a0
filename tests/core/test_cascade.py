"""Blocks and cascades: training steps, and comparisons with the BP baselines."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfree import Backprop, Block, Cascade, DeepSupervision, JointBlock, MFJoint, MonoForward, _seeds
from bpfree.core.readouts import BlockReadout
from bpfree.engine.step import step
from bpfree.losses import FeedbackLoss, LocalCrossEntropy, LocalLoss
from bpfree.trainers import Trainer
from tests.helpers import CLASSES, make_mlp, snapshot, vectors

X, Y = vectors().batch(torch.arange(16))


def built(kind: type[Trainer], net: nn.Module | None = None, **settings: Any) -> Trainer:
    trainer = kind(make_mlp() if net is None else net, progress=False, **settings)
    trainer.build(X.shape[1:], CLASSES)
    return trainer


def test_a_step_is_sgd_on_the_loss_of_each_block() -> None:
    trainer = built(MonoForward, optimizer="sgd", momentum=0.0, lr=0.1)
    rows: Tensor = X
    expected: list[dict[str, Tensor]] = []
    losses: list[Tensor] = []
    for block in trainer.cascade.units:
        output = block.body(rows)
        loss = F.cross_entropy(block.loss.scores(output), Y)
        grads = torch.autograd.grad(loss, list(block.parameters()))
        pairs = zip(block.named_parameters(), grads, strict=True)
        expected.append({name: (p - 0.1 * g).detach() for (name, p), g in pairs})
        losses.append(loss.detach())
        rows = output.detach()
    for actual, loss in zip(trainer.step(X, Y), losses, strict=True):
        torch.testing.assert_close(actual, loss)
    for block, after in zip(trainer.cascade.units, expected, strict=True):
        for name, p in block.named_parameters():
            torch.testing.assert_close(p.detach(), after[name])


@pytest.mark.parametrize("gradients", ["autograd", "analytic"])
def test_an_update_frees_gradients_and_the_graph(gradients: str) -> None:
    trainer = built(MonoForward, gradients=gradients)
    block = trainer.cascade.units[0]
    before = snapshot(block)
    with torch.no_grad():
        expected = block(X)
    losses, output = block.update(X, Y)
    assert all(p.grad is None for p in trainer.cascade.parameters())
    assert not output.requires_grad
    assert not any(loss.requires_grad for loss in losses)
    # The input of the block above is the output before the step.
    assert torch.equal(output, expected)
    assert all(not torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())


def test_a_front_is_called_without_gradients_and_in_evaluation_mode() -> None:
    calls: list[tuple[bool, bool]] = []

    class Front(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            calls.append((torch.is_grad_enabled(), self.training))
            return super().forward(x)

    block = Block(nn.Linear(5, 4), LocalCrossEntropy(), front=Front(12, 5))
    block.train()
    block.build(X, CLASSES)
    block(X)
    assert calls == [(False, False)] * 2
    assert {tuple(p.shape) for p in block.trainable()} == {(4, 5), (4,), (CLASSES, 4)}


def test_a_front_inside_a_joint_block_is_not_trained() -> None:
    front = nn.Linear(12, 5)
    inner = Block(nn.Linear(5, 4), LocalCrossEntropy(), front=front)
    joint = JointBlock([inner, Block(nn.Linear(4, 4), LocalCrossEntropy())], [1.0, 1.0])
    joint.build(X, CLASSES)
    trained = {id(p) for p in joint.trainable()}
    assert trained == {id(p) for p in joint.parameters()} - {id(p) for p in front.parameters()}
    assert all(p.requires_grad for p in front.parameters())


# ---- BP baselines ----------------------------------------------------------------------------------------


def test_mf_joint_has_the_losses_of_mono_forward_and_other_gradients() -> None:
    local, joint = built(MonoForward), built(MFJoint, aux_weight=1.0)
    assert snapshot(local.net).keys() == snapshot(joint.net).keys()
    for source, copy in zip(local.cascade.losses, joint.cascade.losses, strict=True):
        copy.load_state_dict(source.state_dict())
    rows: Tensor = X
    separate: list[Tensor] = []
    for block in local.cascade.units:
        losses, _, rows = block.objective(rows, Y, None)
        separate += losses
        losses[0].backward()  # type: ignore[no-untyped-call]
        rows = rows.detach()
    summed, _, _ = joint.cascade.units[0].objective(X, Y, None)
    for a, b in zip(separate, summed, strict=True):
        assert torch.equal(a, b)
    torch.stack(summed).sum().backward()  # type: ignore[no-untyped-call]
    mine, other = (dict(trainer.net.named_parameters()) for trainer in (local, joint))
    for name in ("1.weight", "1.bias"):
        assert not torch.equal(mine[name].grad, other[name].grad), name  # type: ignore[arg-type]
    for name in ("3.weight", "3.bias", "5.weight", "5.bias"):
        assert torch.equal(mine[name].grad, other[name].grad), name  # type: ignore[arg-type]


def test_the_weights_of_a_joint_block_do_not_change_the_reported_losses() -> None:
    plain, weighted = (built(MFJoint, aux_weight=w).cascade.units[0] for w in (1.0, 0.25))
    (ones, whole, _), (found, part, _) = (block.objective(X, Y, None) for block in (plain, weighted))
    assert all(torch.equal(a, b) for a, b in zip(ones, found, strict=True))
    torch.testing.assert_close(whole, ones[0] + ones[1])
    torch.testing.assert_close(part, 0.25 * ones[0] + ones[1])


@pytest.mark.parametrize("kind", [MFJoint, DeepSupervision])
def test_losses_in_a_history_do_not_depend_on_their_weights(kind: type[Trainer]) -> None:
    told = []
    for weight in (1.0, 0.25):
        # The learning rate is so small that the weights do not change.
        trainer = built(kind, aux_weight=weight, lr=1e-12)
        told.append(trainer.fit(vectors(48), epochs=1, batch_size=16).rows[0]["loss"])
        assert told[-1] == pytest.approx(
            [loss(o, vectors(48).y).item() for loss, o in zip(
                trainer.cascade.losses, trainer.cascade.outputs(vectors(48).x), strict=True
            )], rel=1e-5,
        )  # fmt: skip
    assert told[0] == pytest.approx(told[1], rel=1e-6)


def test_deep_supervision_of_weight_zero_is_backpropagation() -> None:
    plain, deep = built(Backprop), built(DeepSupervision, aux_weight=0.0)
    for trainer in (plain, deep):
        trainer.fit(vectors(), epochs=3, batch_size=16)
    for name, tensor in plain.net.state_dict().items():
        assert torch.equal(tensor, deep.net.state_dict()[name]), name
    some = built(DeepSupervision, aux_weight=0.5)
    some.fit(vectors(), epochs=3, batch_size=16)
    assert not torch.equal(some.net[1].weight, plain.net[1].weight)  # type: ignore[index]


def test_deep_supervision_is_the_published_sum() -> None:
    trainer = built(DeepSupervision, aux_weight=0.3)
    heads = [loss.head for loss in trainer.cascade.losses]
    net: Any = trainer.net
    a1 = net[:3](X)
    a2 = net[3:5](a1)
    expected = F.cross_entropy(net[5](a2), Y)
    for head, a in zip(heads, (a1, a2), strict=False):
        expected = expected + 0.3 * F.cross_entropy(head(a), Y)  # type: ignore[operator]
    losses, total, _ = trainer.cascade.units[0].objective(X, Y, None)
    assert len(losses) == 3
    torch.testing.assert_close(total, expected)


def test_with_detach_no_gradient_crosses_a_boundary_inside_a_joint_block() -> None:
    blocks = [Block(nn.Linear(12, 6), LocalCrossEntropy()), Block(nn.Linear(6, 5), LocalCrossEntropy())]
    for detach in (True, False):
        joint = JointBlock(blocks, [1.0, 1.0], detach=detach)
        joint.build(X, CLASSES)
        joint.zero_grad()
        losses, _, _ = joint.objective(X, Y, None)
        losses[1].backward()  # type: ignore[no-untyped-call]
        assert (blocks[0].body.weight.grad is None) == detach


# ---- noise, shapes, messages -----------------------------------------------------------------------------


def test_dropout_depends_on_seed_block_and_step_only() -> None:
    def masks(seed: int, first: int, noise: int) -> list[Tensor]:
        blocks = [Block(nn.Dropout(0.5), Keeping()) for _ in range(2)]
        for block in blocks:
            block.optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)
        torch.manual_seed(noise)
        step(blocks, torch.ones(4, 50), torch.zeros(4), seed, first)
        return [block.loss.seen for block in blocks]  # type: ignore[misc]

    class Keeping(LocalLoss):
        seen: Tensor

        def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
            self.seen = output.detach()
            return (output * torch.ones((), requires_grad=True)).sum()

    one = masks(7, 0, 0)
    assert all(torch.equal(a, b) for a, b in zip(one, masks(7, 0, 1), strict=True))
    assert not torch.equal(one[0], masks(8, 0, 0)[0])
    # Block 1 has the same dropout if it is trained alone, as in a greedy schedule.
    alone = masks(7, 1, 5)[0]
    assert torch.equal(alone.bool() & one[0].bool(), one[1].bool())
    _seeds.seed_global(torch.device("cpu"), 7, 1)
    assert torch.equal(alone, F.dropout(torch.ones(4, 50), 0.5))


def test_messages_are_detached_and_feedback_has_a_graph() -> None:
    class Teaching(FeedbackLoss):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.full((), 2.0))
            self.heard: Tensor | None = None

        def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
            assert feedback is not None
            return (output.mean() - feedback).square()

        def make_feedback(self, message: Tensor | None) -> tuple[Tensor, Tensor]:
            self.heard = message
            feedback = self.scale * (torch.ones(()) if message is None else message)
            return feedback, feedback

    losses = [Teaching() for _ in range(3)]
    blocks = [Block(nn.Linear(12, 12), loss) for loss in losses]
    for block in blocks:
        block.optimizer = torch.optim.SGD(block.trainable(), 0.1)
    step(blocks, X, Y, seed=0)
    assert losses[2].heard is None
    for loss, value in ((losses[1], 2.0), (losses[0], 4.0)):
        assert loss.heard is not None
        assert loss.heard.item() == value
        assert not loss.heard.requires_grad
    assert all(loss.scale.item() != 2.0 for loss in losses)


def test_a_cascade_has_outputs_and_losses_of_inner_blocks() -> None:
    cascade = built(DeepSupervision).cascade
    assert [tuple(o.shape) for o in cascade.outputs(X)] == [(16, 16)] * 3
    assert len(cascade.losses) == 3
    local = built(MonoForward).cascade
    assert len(local.outputs(X, 1)) == 1


def test_to_module_returns_the_net_that_was_cut_or_the_cascade() -> None:
    net = make_mlp()
    assert built(MonoForward, net).cascade.to_module() is net
    summed = built(MonoForward, readout="sum").cascade
    assert summed.to_module() is summed
    bare = Cascade([Block(nn.Linear(12, 4), LocalCrossEntropy())], {"last": BlockReadout()})
    assert bare.to_module() is bare


def test_the_net_that_was_cut_is_not_saved_twice() -> None:
    cascade = built(MonoForward).cascade
    assert len({t.data_ptr() for t in cascade.state_dict().values()}) == len(cascade.state_dict())
