"""Counter-current learning: what each loss updates, the cost of a step in the paper, and the variants."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bpfree
from bpfree import Backprop, BadValue, CounterCurrentLearning
from bpfree.core.block import send_feedback
from bpfree.losses import CounterCurrent
from bpfree.meters import count_flops
from bpfree.trainers.alignment import between_within, linear_cka, weight_alignment

X = torch.rand(20, 12, generator=torch.Generator().manual_seed(0))
Y = torch.arange(20) % 3


def make(dtype: torch.dtype = torch.float32, **settings: Any) -> CounterCurrentLearning:
    torch.manual_seed(0)
    net = bpfree.nn.mlp([12, 9, 8, 7, 3], "elu", bias=False, output_bias=False)
    trainer = CounterCurrentLearning(net, progress=False, **settings)
    trainer.build((12,), 3)
    trainer.cascade.to(dtype)
    return trainer


def forward_weights(trainer: CounterCurrentLearning) -> list[Tensor]:
    return list(trainer.net.parameters())


def feedback_weights(trainer: CounterCurrentLearning) -> list[Tensor]:
    return [loss.weights()[1] for loss in trainer.cascade.losses if isinstance(loss, CounterCurrent)]


def by_hand(trainer: CounterCurrentLearning, x: Tensor, y: Tensor) -> None:
    """One step by the equations of the paper, with one summed backward pass."""
    u, v = forward_weights(trainer), feedback_weights(trainer)
    b, prototypes = torch.eye(3, dtype=x.dtype), []
    for weight in reversed(v):
        b = nn.functional.elu(b.detach() @ weight.T)
        prototypes.insert(0, b)
    loss, a, one_hot = torch.zeros((), dtype=x.dtype), x, torch.eye(3, dtype=x.dtype)[y]
    for weight, feedback in zip(u[:-1], prototypes, strict=True):
        a = nn.functional.elu(a.detach() @ weight.T)
        loss = loss + 256 * 0.5 / a.shape[1] * (a @ feedback.T - one_hot).square().mean()
    loss = loss + nn.functional.cross_entropy(a.detach() @ u[-1].T, y)
    grads = torch.autograd.grad(loss, [*u, *v])
    with torch.no_grad():
        for p, grad in zip([*u, *v], grads, strict=True):
            p -= 0.1 * grad


@pytest.mark.parametrize("gradients", ["autograd", "analytic"])
def test_ten_steps_agree_with_the_equations(gradients: str) -> None:
    trainer = make(torch.float64, lr=0.1, gradients=gradients, clip=None)
    expected = make(torch.float64)
    for number in range(10):
        trainer.step(X.double(), Y, number)
        by_hand(expected, X.double(), Y)
    for ours, theirs in zip(
        forward_weights(trainer) + feedback_weights(trainer),
        forward_weights(expected) + feedback_weights(expected),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_a_pair_loss_has_gradients_for_its_layer_and_its_feedback_layer() -> None:
    trainer = make()
    trainer.cascade.train()
    units = trainer.cascade.units
    rows = X
    names = {id(p): name for name, p in trainer.cascade.named_parameters()}
    for k, (block, feedback) in enumerate(zip(units, send_feedback(units)[0], strict=True)):
        losses, _, output = block.objective(rows, Y, feedback)
        losses[0].backward()
        with_gradient = {names[id(p)] for p in trainer.cascade.parameters() if p.grad is not None}
        body = {f"blocks.{k}.body.1.weight" if k == 0 else f"blocks.{k}.body.0.weight"}
        top = k == len(units) - 1
        assert with_gradient == (
            {f"blocks.{k}.loss.head.weight"} if top else body | {f"blocks.{k}.loss.feedback.0.weight"}
        )
        trainer.cascade.zero_grad(set_to_none=True)
        rows = output.detach()


@pytest.mark.parametrize("settings", [{}, {"loss": "decorrelated"}, {"gradients": "analytic"}], ids=str)
def test_the_input_pair_does_not_change_the_forward_network(settings: dict[str, Any]) -> None:
    without, with_pair = (
        make(clip=None, lr=0.1, **settings),
        make(clip=None, lr=0.1, input_pair=True, **settings),
    )
    copies = {id(loss._above[0]): loss for loss in without.cascade.losses if isinstance(loss, CounterCurrent)}
    assert len(with_pair.cascade.units) == len(without.cascade.units) + 1
    with torch.no_grad():
        for ours, theirs in zip(feedback_weights(with_pair)[1:], feedback_weights(without), strict=True):
            ours.copy_(theirs)
    assert len(copies) == 3
    for number in range(5):
        for trainer in (without, with_pair):
            trainer.step(X, Y, number)
    for ours, theirs in zip(forward_weights(without), forward_weights(with_pair), strict=True):
        assert torch.equal(ours, theirs)


def test_separate_steps_have_the_bits_of_the_summed_step() -> None:
    separate, joint = make(clip=None, lr=0.1), make(clip=None, lr=0.1, joint=True)
    for number in range(5):
        separate.step(X, Y, number)
        joint.step(X, Y, number)
    for ours, theirs in zip(forward_weights(separate), forward_weights(joint), strict=True):
        assert torch.equal(ours, theirs)


def gradients(trainer: CounterCurrentLearning) -> list[tuple[list[Tensor], Tensor]]:
    """The gradients of each parameter group in the step of its optimizer, and as one vector."""
    groups: list[list[Tensor]] = []
    for optimizer in trainer.optimizers.values():
        optimizer.register_step_pre_hook(
            lambda o, *_: groups.extend([p.grad.clone() for p in g["params"]] for g in o.param_groups)
        )
    trainer.step(X, Y)
    return [(group, torch.cat([g.flatten() for g in group])) for group in groups if group]


def test_gradients_are_clipped_by_block_or_all_together_if_joint() -> None:
    unclipped = [vector for _, vector in gradients(make(clip=None))]
    limit = float(torch.stack([v.norm() for v in unclipped]).median())
    for (_, clipped), vector in zip(gradients(make(clip=limit)), unclipped, strict=True):
        factor = min(1.0, limit / (vector.norm().item() + 1e-6))
        torch.testing.assert_close(clipped, vector * factor)
    (forward, _), (feedback, _) = gradients(make(clip=limit / 4, joint=True))
    for side in (forward, feedback):
        assert torch.cat([g.flatten() for g in side]).norm().item() == pytest.approx(limit / 4, rel=1e-4)


def test_centralized_gradients_have_mean_zero() -> None:
    for group, _ in gradients(make(centralize=True, clip=None)):
        for grad in group:
            assert grad.mean(1).abs().max() < 1e-7
    plain = gradients(make(clip=None))
    assert max(g.mean(1).abs().max() for group, _ in plain for g in group) > 1e-4


def test_a_copy_clips_its_gradients() -> None:
    trainer = make(clip=1e-4)
    before = [p.clone() for p in forward_weights(trainer)]
    copied = trainer.clone()
    copied.step(X, Y)
    assert isinstance(copied, CounterCurrentLearning)
    for p, old in zip(forward_weights(copied), before, strict=True):
        assert 0 < (p - old).norm() <= 1.001e-4


def test_feedback_has_its_own_learning_rate() -> None:
    trainer = make(lr=0.1, feedback_lr=0.025, clip=None)
    rates = {group["lr"] for o in trainer.optimizers.values() for group in o.param_groups if group["params"]}
    assert rates == {0.1, 0.025}
    other = make(lr=0.1, clip=None)
    before = [p.clone() for p in feedback_weights(trainer)]
    for one in (trainer, other):
        one.step(X, Y)
    for p, q, start in zip(feedback_weights(trainer), feedback_weights(other), before, strict=True):
        torch.testing.assert_close((p - start) * 4, q - start, rtol=1e-3, atol=1e-7)


def test_the_gate_leaves_out_samples_with_a_confident_prediction() -> None:
    trainer = make(joint=True, gate=0.34)
    (joint,) = trainer.cascade.units
    with torch.no_grad():
        probability = trainer.net(X).softmax(1).gather(1, Y.unsqueeze(1)).squeeze(1)
    confident = probability > 0.34
    assert 0 < confident.sum() < 20
    outputs = joint.outputs(X)
    gated = joint.loss_outputs(outputs, Y)
    for one, output in zip(gated[:-1], outputs[:-1], strict=True):
        assert torch.equal(one, output * ~confident.unsqueeze(1))
    assert gated[-1] is outputs[-1]


#: MFLOP per sample and step at batch 32 in the paper's table 2.
PAPER = {(784, 256, 5): (2.39, 2.55), (3072, 1024, 3): (25.23, 27.89)}


@pytest.mark.parametrize("shape", PAPER, ids=str)
def test_the_cost_of_a_step_is_that_of_the_paper(shape: tuple[int, int, int]) -> None:
    n_in, width, depth = shape
    x, y = torch.zeros(32, n_in), torch.zeros(32, dtype=torch.long)
    widths = [n_in, *[width] * depth, 10]
    costs = []
    for kind, settings in ((Backprop, {}), (CounterCurrentLearning, {"input_pair": True})):
        net = bpfree.nn.mlp(widths, "elu", bias=False, output_bias=False)
        trainer = kind(net, progress=False, **settings)
        trainer.build((n_in,), 10)
        costs.append(count_flops(trainer.step, x, y) / 32)
    f = 2 * sum(a * b for a, b in pairwise(widths))
    h = width * depth
    assert costs[0] == 3 * f - 2 * n_in * width
    assert costs[1] == 2 * f + 10 / 32 * 2 * f + 20 * (2 * (n_in + h) + h)
    assert tuple(round(cost / 1e6, 2) for cost in costs) == PAPER[shape]


def test_it_costs_less_than_backpropagation_at_a_larger_batch() -> None:
    x, y = torch.zeros(256, 784), torch.zeros(256, dtype=torch.long)
    costs = []
    for kind in (Backprop, CounterCurrentLearning):
        trainer = kind(bpfree.nn.mlp([784, *[256] * 5, 10], bias=False, output_bias=False), progress=False)
        trainer.build((784,), 10)
        costs.append(count_flops(trainer.step, x, y) / 256 / 1e6)
    assert [round(cost, 2) for cost in costs] == [2.39, 1.98]


@pytest.mark.parametrize("pool", ["max", "stride"])
def test_convolutional_nets_learn(pool: Any) -> None:
    torch.manual_seed(0)
    y = torch.arange(60) % 3
    x = torch.rand(60, 1, 9, 9) * 0.1
    for label in range(3):
        x[y == label, :, label * 3 : label * 3 + 3] += 1
    net = bpfree.nn.cnn((1, 9, 9), 3, (8, 8), "elu", pool, bias=False)
    trainer = CounterCurrentLearning(net, progress=False, loss="decorrelated", lr=0.5)
    trainer.fit((x, y), epochs=30, batch_size=20)
    assert trainer.evaluate((x, y))["accuracy"] == 1
    assert trainer.locality == "L2"


def test_the_history_has_the_agreement_of_the_networks() -> None:
    trainer = make()
    history = trainer.fit((X, Y), (X, Y), epochs=1, batch_size=10)
    diagnosis = history.rows[0]["diagnosis"]
    assert {name: len(values) for name, values in diagnosis.items()} == {
        "alignment": 3,
        "between_within": 3,
        "cka": 3,
    }


def test_measures_of_agreement() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, filters = torch.randn(4, 6, generator=generator), torch.randn(4, 2, 3, 3, generator=generator)
    assert weight_alignment(weight, 3 * weight.T) == pytest.approx(1)
    assert weight_alignment(weight, -weight.T) == pytest.approx(-1)
    # Autograd applies the transposed and flipped filters to the gradient of the output.
    x = torch.zeros(1, 2, 5, 5, requires_grad=True)
    error = torch.randn(1, 4, 5, 5, generator=generator)
    nn.functional.conv2d(x, filters, padding=1).backward(error)
    back = filters.transpose(0, 1).flip((2, 3))
    torch.testing.assert_close(x.grad, nn.functional.conv2d(error, back, padding=1))
    assert weight_alignment(filters, back) == pytest.approx(1)
    rows = torch.tensor([[0.0, 1.0], [0.0, 3.0], [4.0, 1.0], [4.0, 3.0]])
    assert between_within(rows, torch.tensor([0, 0, 1, 1])) == pytest.approx(16 / 4)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    samples = torch.randn(50, 6, generator=generator)
    assert linear_cka(samples, 2 * samples @ rotation + 1) == pytest.approx(1)
    assert linear_cka(samples, torch.randn(50, 6, generator=generator)) < 0.3


def test_settings_that_exclude_each_other_are_refused() -> None:
    for settings, message in [
        ({"schedule": "greedy"}, "use 'simultaneous' or 'pipelined'"),
        ({"gate": 0.9}, "requires joint"),
        ({"gradients": "analytic", "loss": "cosine"}, "analytic"),
        ({"loss": "mse"}, "loss"),
        ({"cut": 2}, "cut = 'weight'"),
    ]:
        with pytest.raises(BadValue, match=message):
            make(**settings)
