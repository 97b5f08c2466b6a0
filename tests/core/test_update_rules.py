"""Rules of one's own against loops by hand: Oja's rule, predictive coding; and what rules refuse."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfree import BadValue, Block, Cascade, JointBlock, Local, register_loss
from bpfree.core import Autograd, ClosedFormGradient, Gradients, OnePassSolve, Perturbation, UpdateRule
from bpfree.core.readouts import BlockReadout
from bpfree.core.update_rules import set_gradients
from bpfree.losses import BlockLoss, ClosedForm, LocalCrossEntropy, LocalLoss
from tests.helpers import CLASSES, vectors

G = torch.Generator().manual_seed(0)
X, Y = torch.randn(20, 12, generator=G), torch.randint(CLASSES, (20,), generator=G)


class Oja(UpdateRule[Block]):
    """Oja's rule (J. Math. Biol. 15, 267): ``dW = y x^T - y^2 W``, averaged over rows; no loss is derived."""

    def gradients(
        self, block: Block, front_output: Any, target: Tensor, feedback: Tensor | None
    ) -> Gradients:
        weight = block.body.weight
        assert isinstance(weight, Tensor)
        with torch.no_grad():
            y = block.body(front_output)
            hebb = y.T @ front_output / len(y)
            decay = y.square().mean(0).unsqueeze(1) * weight
            return Gradients([block.loss(y, target)], y, {weight: decay - hebb})


class OutputPower(LocalLoss):
    """Minus the mean square of the output, to report; Oja's rule raises the latter."""

    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        return -output.square().mean()

    def scores(self, output: Tensor) -> Tensor:
        return output


def test_ojas_rule_finds_the_first_principal_component() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(400, 6, generator=generator) * torch.tensor([3.0, 1.0, 1.0, 0.5, 0.5, 0.2])
    torch.manual_seed(2)
    block = Block(nn.Linear(6, 1, bias=False), OutputPower(), rule=Oja())
    block.optimizer = torch.optim.SGD(block.trainable(), lr=0.05)
    weight = block.body.weight.detach().clone()  # type: ignore[union-attr, operator]
    for step in range(60):
        rows = x[(step % 10) * 40 : (step % 10 + 1) * 40]
        y = rows @ weight.T
        weight = weight + 0.05 * (y.T @ rows / 40 - y.square().mean(0).unsqueeze(1) * weight)
        block.update(rows, Y)
    torch.testing.assert_close(block.body.weight, weight)
    first = torch.linalg.svd(x, full_matrices=False).Vh[0]
    assert abs(F.cosine_similarity(weight[0], first, dim=0).item()) > 0.99
    assert weight.norm().item() == pytest.approx(1.0, abs=0.1)


@register_loss("tests.predictive_coding")
class PredictiveCoding(BlockLoss):
    """The error by which a top-down weight predicts the input of the block from its output."""

    def build(self, output: Tensor, n_classes: int) -> None:
        self.top_down = nn.Linear(output.shape[1], 12, bias=False)

    def block_loss(
        self, body: nn.Module, inputs: Tensor, output: Tensor, target: Tensor, feedback: Tensor | None
    ) -> Tensor:
        return F.mse_loss(self.top_down(output), inputs)


def test_predictive_coding_is_a_loss_of_the_input() -> None:
    torch.manual_seed(0)
    block = Block(nn.Sequential(nn.Linear(12, 5), nn.Tanh()), PredictiveCoding())
    block.build(X, CLASSES)
    body, top_down = copy.deepcopy(block.body), copy.deepcopy(block.loss.top_down)
    parameters = [*body.parameters(), *top_down.parameters()]  # type: ignore[operator, union-attr]
    block.optimizer = torch.optim.SGD(block.trainable(), lr=0.3)
    for _ in range(5):
        expected = F.mse_loss(top_down(body(X)), X)  # type: ignore[operator]
        grads = torch.autograd.grad(expected, parameters)
        (loss,), _ = block.update(X, Y)
        torch.testing.assert_close(loss, expected.detach())
        with torch.no_grad():
            for parameter, grad in zip(parameters, grads, strict=True):
                parameter -= 0.3 * grad
    for ours, theirs in zip(block.trainable(), parameters, strict=True):
        torch.testing.assert_close(ours, theirs)
    with pytest.raises(TypeError, match="PredictiveCoding needs the block's input"):
        block.loss(X, Y)


def test_a_loss_of_the_input_trains_in_a_cascade_and_in_a_joint_block() -> None:
    def blocks() -> list[Block]:
        torch.manual_seed(0)
        return [
            Block(nn.Sequential(nn.Linear(12, 8), nn.Tanh()), PredictiveCoding()),
            Block(nn.Identity(), LocalCrossEntropy(nn.Linear(8, CLASSES))),
        ]

    losses = []
    for joint in (False, True):
        parts = blocks()
        units = [JointBlock(parts, [1.0, 1.0], detach=True)] if joint else parts
        trainer = Local(Cascade(units, {"last": BlockReadout()}), lr=1e-2, progress=False)
        rows = trainer.fit(vectors(48), epochs=4, batch_size=16).rows
        losses.append([row["loss"] for row in rows])
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]))
    assert losses[0][-1][0] < losses[0][0][0]


def test_gradients_get_the_strides_of_their_parameters() -> None:
    weight = nn.Parameter(torch.randn(3, 4, generator=G).T.contiguous().T)
    gradient = torch.randn(3, 4, generator=G)
    assert weight.stride() != gradient.stride()
    set_gradients({weight: gradient})
    assert weight.grad is not None and weight.grad.stride() == weight.stride()
    assert torch.equal(weight.grad, gradient)


def test_the_slope_of_a_quadratic_is_exact() -> None:
    class Quadratic(LocalLoss):
        def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
            return output.square().sum()

    class Vector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.5, -2.0, 1.0], dtype=torch.double))

        def forward(self, x: Tensor) -> Tensor:
            return self.w

    body = Vector()
    block = Block(body, Quadratic(), rule=Perturbation(size=0.1, directions=400))
    before = body.w.detach().clone()
    torch.manual_seed(0)
    estimate = block.rule.gradients(block, X, Y, None).gradients[body.w]
    assert torch.equal(body.w, before)
    # (w . s) s has mean w, and along each direction the difference of a quadratic is its slope.
    assert F.cosine_similarity(estimate, 2 * before, dim=0) > 0.98
    torch.manual_seed(0)
    signs = torch.stack([torch.randint(0, 2, (3,)).double() * 2 - 1 for _ in range(400)])
    torch.testing.assert_close(estimate, (signs * (signs @ (2 * before)).unsqueeze(1)).mean(0))


def test_the_rule_follows_from_the_loss_and_old_names_are_accepted() -> None:
    linear = nn.Linear(12, 4)
    assert isinstance(Block(linear, LocalCrossEntropy()).rule, Autograd)
    assert isinstance(Block(nn.Identity(), ClosedForm(), front=linear).rule, OnePassSolve)
    for kind, old in ((ClosedFormGradient, "analytic"), (Autograd, "autograd")):
        with pytest.warns(FutureWarning, match=rf"rule=bpfree\.{kind.__name__}\(\)"):
            assert isinstance(Block(linear, LocalCrossEntropy(), gradients=old).rule, kind)
        with pytest.warns(FutureWarning, match=kind.__name__):
            assert isinstance(Block(linear, LocalCrossEntropy(), None, old).rule, kind)  # type: ignore[arg-type]
    with pytest.warns(FutureWarning, match="OnePassSolve"):
        assert isinstance(Block(nn.Identity(), ClosedForm(), linear, gradients="analytic").rule, OnePassSolve)
    with pytest.raises(BadValue, match="gradients = 'exact': expected 'autograd' or 'analytic'"):
        Block(linear, LocalCrossEntropy(), gradients="exact")


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (lambda: Block(nn.Linear(12, 4), ClosedForm()), "without a gradient for the parameters of the body"),
        (lambda: Block(nn.Identity(), ClosedForm(), rule=Autograd()), "ClosedForm has no gradient"),
        (lambda: Block(nn.Linear(12, 3), OutputPower(), rule=ClosedFormGradient()), "no closed-form"),
        (lambda: Block(nn.Linear(12, 4), LocalCrossEntropy(), rule=OnePassSolve()), "be solved in one pass"),
    ],
)  # fmt: skip
def test_a_rule_that_cannot_train_its_block_is_refused(block: Any, message: str) -> None:
    trainer = Local(Cascade([block()], {"last": BlockReadout()}), progress=False)
    with pytest.raises(BadValue, match=message):
        trainer.fit(vectors(24), epochs=1)
