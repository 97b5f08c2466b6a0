"""The checks of locality detect violations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bpfree import (
    Backprop,
    BadValue,
    Block,
    Cascade,
    CascadedForward,
    CounterCurrentLearning,
    DirectFeedbackAlignment,
    ForwardForward,
    History,
    Local,
    MFJoint,
    MonoForward,
)
from bpfree.core.joint import JointBlock
from bpfree.core.readouts import BlockReadout
from bpfree.losses import LocalCrossEntropy
from bpfree.testing import assert_local, assert_locality
from bpfree.trainers import Trainer
from tests.helpers import make_mlp, snapshot, vectors

X, Y = vectors().batch(torch.arange(12))


def declares(level: str, kind: type[Trainer], **settings: Any) -> Trainer:
    mislabeled = type(kind.__name__, (kind,), {"locality": level})
    trainer: Trainer = mislabeled(make_mlp(), progress=False, **settings)
    return trainer


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        (declares("L1", MFJoint), r"block 1\.2 reaches blocks\.0\.blocks\.0\.body"),
        (declares("L2", MFJoint), r"block 1\.2 reaches "),
        (declares("L1", Backprop), "all trainable parameters of bodies are in one block .* L0"),
        (declares("L2", MonoForward, cut=1), "all trainable parameters of bodies are in one block"),
        (declares("L3", MonoForward), "declares L3, but a step saves .* tensors"),
        (declares("L3", ForwardForward), "declares L3, but a step saves"),
        (declares("L0", MonoForward), r"L0.* does not reach blocks\.0\.body\.1\.weight"),
        (declares("L9", MonoForward), "'L9'; expected one of L0, L1, L2, L3"),
    ],
)
def test_a_wrong_level_raises_an_error(trainer: Trainer, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_locality(trainer, X, Y)


def test_a_body_of_two_layers_is_not_l2() -> None:
    mislabeled = type("Mislabeled", (MonoForward,), {"locality": "L2"})
    trainer = mislabeled(make_mlp(16, 16, 16, 16), cut=2, progress=False)
    with pytest.raises(AssertionError, match=r"body of block 1 has several .* 1\.weight, 3\.weight"):
        assert_locality(trainer, X, Y)


def test_an_output_that_is_not_detached_raises_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def leaky(
        self: Block, body_input: Any, target: Tensor, feedback: Any = None
    ) -> tuple[list[Tensor], Tensor]:
        losses, _, output = self.objective(body_input, target, feedback)
        losses[0].backward(retain_graph=True)
        assert self.optimizer is not None
        with torch.no_grad():
            self.optimizer.step()
        self.optimizer.zero_grad()
        return [losses[0].detach()], output  # not detached

    # Steps change nothing, so that the next block can run its backward pass through unchanged weights.
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: None)
    monkeypatch.setattr(Block, "update", leaky)
    with pytest.raises(AssertionError, match=r"block 2 reaches blocks\.0\.body"):
        assert_local(MonoForward(make_mlp(), progress=False), X, Y)


def test_a_gradient_is_attributed_to_the_block_whose_loss_causes_it() -> None:
    class OtherBlockPenalty(LocalCrossEntropy):
        """Loss that depends on parameters of another block."""

        others: tuple[nn.Module, ...] = ()

        def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
            loss = super().forward(output, target)
            return loss + sum(p.square().sum() for m in self.others for p in m.parameters())

    class Leaking(MonoForward):
        def make_cascade(self, n_classes: int) -> Cascade:
            stages, output = self.stages()
            blocks = [Block(stages[0], LocalCrossEntropy()), Block(stages[1], OtherBlockPenalty(output))]
            blocks[1].loss.others = (stages[0],)  # type: ignore[assignment]
            return Cascade(blocks, {"last": BlockReadout()})

    with pytest.raises(
        AssertionError, match=r"^the gradient of the loss of block 2 reaches blocks\.0\.body\.1\.bias"
    ):
        assert_local(Leaking(make_mlp(), progress=False), X, Y)


def test_a_readout_whose_gradient_reaches_a_block_raises_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Cascade.outputs

    def with_graph(self: Cascade, *args: Any) -> list[Tensor]:
        with torch.enable_grad():
            return inner(self, *args)

    monkeypatch.setattr(Cascade, "outputs", with_graph)
    with pytest.raises(AssertionError, match=r"readout 'classifier' reaches blocks\.0\.body"):
        assert_local(ForwardForward(make_mlp(), progress=False), X, Y)


def test_a_block_without_gradients_raises_an_error() -> None:
    class Constant(LocalCrossEntropy):
        def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
            return torch.zeros((), requires_grad=True) * 1.0

    class Idle(MonoForward):
        def make_cascade(self, n_classes: int) -> Cascade:
            stages, output = self.stages()
            return Cascade(
                [Block(stages[0], Constant()), Block(stages[1], LocalCrossEntropy(output))],
                {"last": BlockReadout()},
            )

    with pytest.raises(AssertionError, match="loss of block 1 reaches no parameter of block 1"):
        assert_local(Idle(make_mlp(), progress=False), X, Y)


def test_a_closed_form_that_changes_another_block_raises_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = MonoForward(make_mlp(), gradients="analytic", progress=False)
    update = Block.update

    def update_others(self: Block, *args: Any) -> Any:
        result = update(self, *args)
        for block in getattr(self, "others", ()):
            block.body[1].weight.data.add_(1.0)
        return result

    monkeypatch.setattr(Block, "update", update_others)
    trainer.build(X.shape[1:], 3)
    assert_locality(trainer, X, Y)
    # In a tuple, so that it is not registered as a submodule of the second block.
    trainer.cascade.units[1].others = (trainer.cascade.units[0],)  # type: ignore[assignment]
    with pytest.raises(AssertionError, match=r"update of block 2 changes blocks\.0\.body\.1\.weight"):
        assert_locality(trainer, X, Y)


def test_a_closed_form_that_changes_nothing_raises_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: None)
    with pytest.raises(AssertionError, match="update of block 1 changes none"):
        assert_locality(MonoForward(make_mlp(), gradients="analytic", progress=False), X, Y)


def test_a_joint_block_with_detached_outputs_is_local() -> None:
    class DetachedBlocks(MFJoint):
        locality = "L2"

        def make_cascade(self, n_classes: int) -> Cascade:
            cascade = super().make_cascade(n_classes)
            assert isinstance(cascade.units[0], JointBlock)
            cascade.units[0].detach = True
            return cascade

    assert_locality(DetachedBlocks(make_mlp(), progress=False), X, Y)


def test_the_trainer_is_not_modified() -> None:
    trainer = MonoForward(make_mlp(), progress=False)
    trainer.build(X.shape[1:], 3)
    before = snapshot(trainer.cascade)
    assert_locality(trainer, X, Y)
    after = snapshot(trainer.cascade)
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    with pytest.raises(BadValue, match="NaN"):
        trainer.fit((X * torch.nan, Y), epochs=1)


class FrontsByBackprop(CascadedForward):
    """Trains its fronts by backpropagation, but declares L1."""

    def front_trainer(self) -> Trainer | None:
        return Backprop(self.net, progress=False)


class StepsBeforeTheRun(CascadedForward):
    """Updates a head before the run."""

    def prepare(self, train: Any, *_: Any) -> History:
        head = next(iter(self.cascade.losses[0].parameters()))
        head.grad = torch.ones_like(head)
        torch.optim.SGD([head], 0.1).step()
        head.grad = None
        return History()


def test_the_trainer_of_the_fronts_is_checked() -> None:
    assert_locality(CascadedForward(make_mlp(), blocks="dfa", block_epochs=1, progress=False), X, Y)
    message = "cafo declares L1, but its fronts are trained by backprop, which declares L0"
    with pytest.raises(AssertionError, match=message):
        assert_locality(FrontsByBackprop(make_mlp(), blocks="dfa", block_epochs=1, progress=False), X, Y)
    with pytest.raises(AssertionError, match="an unknown optimizer took a step in fit"):
        assert_local(StepsBeforeTheRun(make_mlp(), progress=False), X, Y)


# ---- declared levels -------------------------------------------------------------------------------------


class LastState(nn.Module):
    """The last state of a recurrent layer."""

    def forward(self, output: tuple[Tensor, object]) -> Tensor:
        return output[0][:, -1]


def recurrent(*above: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.LSTM(4, 8, 2, batch_first=True), LastState(), *above, nn.Linear(8, 3))


def frozen(*numbers: int) -> nn.Sequential:
    net = make_mlp(16, 16, 16)
    for number in numbers:
        net[number].requires_grad_(False)
    return net


@pytest.mark.parametrize(
    ("make", "level"),
    [
        (lambda: MonoForward(make_mlp(16, 16), progress=False), "L2"),
        (lambda: MonoForward(make_mlp(16, 16, 16, 16), cut=2, progress=False), "L1"),
        (lambda: MonoForward(make_mlp(16, 16, 16), cut=1, progress=False), "L0"),
        (lambda: MonoForward(make_mlp(16), progress=False), "L0"),
        (lambda: MonoForward(make_mlp(16), gradients="analytic", progress=False), "L0"),
        (lambda: MonoForward(frozen(1, 3), progress=False), "L0"),
        (lambda: MonoForward(frozen(3, 5), progress=False), "L2"),
        (lambda: MonoForward(recurrent(), progress=False), "L0"),
        (lambda: MonoForward(recurrent(nn.Linear(8, 8), nn.ReLU()), progress=False), "L1"),
        (lambda: Local(make_mlp(16), output="apart", progress=False), "L2"),
        (lambda: ForwardForward(make_mlp(16, 16, 16), cut=1, progress=False), "L0"),
        (lambda: CounterCurrentLearning(make_mlp(16), progress=False), "L2"),
        (lambda: DirectFeedbackAlignment(make_mlp(16, 16), progress=False), "L1"),
        (lambda: DirectFeedbackAlignment(make_mlp(16, 16), cut=1, progress=False), "L0"),
        (lambda: DirectFeedbackAlignment(make_mlp(16), last_block="feedback", progress=False), "L1"),
        (lambda: CascadedForward(make_mlp(16), blocks="dfa", block_epochs=1, progress=False), "L0"),
        (lambda: CascadedForward(make_mlp(16), progress=False), "L2"),
        (lambda: Backprop(make_mlp(16, 16).requires_grad_(False), progress=False), "L2"),
    ],
)
def test_the_declared_level_is_correct(make: Any, level: str) -> None:
    trainer = make()
    x = torch.rand(12, 5, 4) if isinstance(trainer.net[0], nn.LSTM) else X
    if level == "L2" and isinstance(trainer, Backprop):
        trainer.net[-1].requires_grad_(True)
    trainer.build(x.shape[1:], 3)
    assert trainer.locality == level
    assert_locality(trainer, x, Y)


@pytest.mark.parametrize("kind", [MonoForward, ForwardForward, CounterCurrentLearning, Backprop])
@pytest.mark.parametrize(
    "norm",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`", "ignore:init = 'unit' leaves 1, 3")
def test_layers_with_weight_normalization_have_one_weight_and_are_trained(
    kind: type[Trainer], norm: Any
) -> None:
    net = make_mlp(16, 16)
    for number in (1, 3):
        net[number] = norm(net[number])
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    trainer = kind(net, progress=False)
    trainer.fit(vectors(), epochs=1)
    assert_locality(trainer, X, Y)
    assert trainer.locality == ("L0" if kind is Backprop else "L2")
    unchanged = {name for name, p in net.named_parameters() if torch.equal(p, before[name])}
    assert unchanged <= ({"5.weight", "5.bias"} if kind is ForwardForward else set())
    if kind is MonoForward:
        with pytest.raises(BadValue, match=r"block 1: the closed form needs a linear layer.*use 'autograd'"):
            MonoForward(net, gradients="analytic", progress=False).fit(vectors(), epochs=1)


def test_describe_gives_the_level_and_the_layers_of_the_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = MonoForward(make_mlp(16, 16), cut=1)
    trainer.fit(vectors(), epochs=1)
    description = trainer.describe()
    assert description.splitlines() == [
        "mono_forward: L0, a global backward pass",
        "block 1: Flatten, Linear, ReLU, Linear, ReLU; LocalCrossEntropy",
        "parameters: network 531, local heads 0",
    ]
    assert repr(trainer) == description
    assert description in capsys.readouterr().out
    trainer.fit(vectors(), epochs=1)
    MonoForward(make_mlp(), progress=False).fit(vectors(), epochs=1)
    assert "mono_forward: L" not in capsys.readouterr().out
