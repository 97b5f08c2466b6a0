"""Readouts: how block outputs become class scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfree import BadValue, CascadedForward, ForwardForward, Local, MonoForward, RandomFeatures, localize
from bpfree.core.readouts import BlockReadout, ClassifierReadout, GoodnessReadout, OnePassReadout, SumReadout
from bpfree.losses import Goodness, LocalCrossEntropy, LocalLoss
from tests.helpers import CLASSES, easy, make_mlp, vectors

B = 6


class Silent(LocalLoss):
    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        return output.sum()


@pytest.fixture
def blocks() -> tuple[list[Tensor], list[LocalLoss]]:
    """Outputs of three blocks of different widths, and their losses."""
    torch.manual_seed(0)
    outputs, losses = [torch.rand(B, width) for width in (4, 7, 5)], []
    for output in outputs:
        loss = LocalCrossEntropy()
        loss.build(output, CLASSES)
        losses.append(loss)
    return outputs, losses


def heads(blocks: tuple[list[Tensor], list[LocalLoss]]) -> list[Tensor]:
    return [o @ loss.head[1].weight.T for o, loss in zip(*blocks, strict=True)]  # type: ignore[index]


def test_the_scores_of_one_block(blocks: Any) -> None:
    expected = heads(blocks)
    torch.testing.assert_close(BlockReadout()(*blocks), expected[2])
    torch.testing.assert_close(BlockReadout(0)(*blocks), expected[0])


def test_block_k_is_the_highest_block_if_there_are_fewer(blocks: Any) -> None:
    outputs, losses = blocks
    readout, expected = BlockReadout(1), heads(blocks)
    for n, k in ((1, 0), (2, 1), (3, 1)):
        torch.testing.assert_close(readout(outputs[:n], losses[:n]), expected[k])
        heard = [readout.collect(o, loss) for o, loss in zip(outputs[:n], losses[:n], strict=True)]
        torch.testing.assert_close(readout.predict(heard, losses[:n]), expected[k])
    # In a greedy run the scores of the second block do not depend on the third.
    assert [readout.depends_on(k, k + 1) for k in range(3)] == [True, True, False]
    assert [BlockReadout().depends_on(k, k + 1) for k in range(3)] == [True, True, True]


def test_a_readout_of_a_missing_block_is_refused() -> None:
    for trainer in (
        MonoForward(make_mlp(), readout="block:3", progress=False),
        Local(localize(make_mlp()), readout="block:3", progress=False),
    ):
        with pytest.raises(BadValue, match=r"readout = 'block:3': expected a number from 1 to 2"):
            trainer.build((12,), CLASSES)


@pytest.mark.parametrize("name", ["block:0", "block:", "block:-1", "block:1.5", "blocks:1", "first", ""])
def test_unknown_names_of_readouts_are_refused(name: str) -> None:
    for kind in (MonoForward, Local, RandomFeatures, CascadedForward):
        with pytest.raises(BadValue, match=f"readout = '{name}': expected 'last', 'sum', .* or 'block:k'"):
            kind(make_mlp(), readout=name, progress=False)


@pytest.mark.parametrize("schedule", ["simultaneous", "greedy"])
def test_predictions_can_use_any_block(schedule: Any) -> None:
    trainer = MonoForward(make_mlp(16, 16, 16), readout="block:2", schedule=schedule, lr=0.02, progress=False)
    history = trainer.fit(easy(), easy(seed=1), epochs=6, batch_size=16, patience=3)
    found = trainer.evaluate(easy(seed=2))
    assert found["accuracy"] == found["readouts"]["block:2"] == found["blocks"][1] > 0.9
    assert list(found["readouts"]) == ["block:2", "last", "sum", "sum_probabilities"]
    # The weights of a block above that of the readout are selected by its own scores.
    if schedule == "greedy":
        best = max(row["validation"]["last"] for row in history.rows if row["stage"] == "block 3")
        assert history.stages[2]["best"] == best
        assert found["readouts"]["last"] > 0.9


def test_sums_of_scores_and_of_probabilities(blocks: Any) -> None:
    expected = heads(blocks)
    torch.testing.assert_close(SumReadout()(*blocks), expected[0] + expected[1] + expected[2])
    probabilities = [s.exp() / s.exp().sum(1, keepdim=True) for s in expected]
    torch.testing.assert_close(SumReadout(probabilities=True)(*blocks), sum(probabilities))


def test_readouts_use_the_first_blocks_if_there_are_no_others(blocks: Any) -> None:
    outputs, losses = blocks
    expected = heads(blocks)
    torch.testing.assert_close(BlockReadout()(outputs[:2], losses[:2]), expected[1])
    torch.testing.assert_close(SumReadout()(outputs[:2], losses[:2]), expected[0] + expected[1])


def test_block_scores_are_the_scores_of_each_block(blocks: Any) -> None:
    found = BlockReadout().per_block(*blocks)
    for ours, theirs in zip(found, heads(blocks), strict=True):
        torch.testing.assert_close(ours, theirs)
    outputs, losses = blocks
    assert BlockReadout().per_block(outputs, [losses[0], Silent(), losses[2]])[1] is None


def test_a_loss_without_scores_is_refused(blocks: Any) -> None:
    outputs, losses = blocks
    with pytest.raises(BadValue, match="Silent has no scores"):
        BlockReadout()(outputs, [*losses[:2], Silent()])
    with pytest.raises(BadValue, match="Silent has no scores"):
        SumReadout()(outputs, [Silent(), *losses[1:]])


@pytest.mark.parametrize("form", ["sum", "mean"])
@pytest.mark.parametrize("skip_first", [True, False])
def test_goodness_of_all_labels_in_one_batch_equals_that_of_single_labels(
    skip_first: bool, form: Any
) -> None:
    trainer = ForwardForward(
        make_mlp(16, 20, 16), progress=False, readout="goodness", skip_first=skip_first, goodness=form,
        overlay="force",
    )  # fmt: skip
    data = vectors()
    data.x[:, :CLASSES] = 0.0
    trainer.fit(data, epochs=2, batch_size=16)
    x, _ = data.batch(torch.arange(10))
    bodies = [block.body for block in trainer.cascade.units]
    scores = torch.zeros(10, CLASSES)
    with torch.no_grad():
        for label in range(CLASSES):
            shown = x.clone()
            shown[:, :CLASSES] = F.one_hot(torch.tensor(label), CLASSES).float()
            h = shown
            for k, body in enumerate(bodies):
                h = h / (h.square().mean(1, keepdim=True).sqrt() + 1e-8)
                linear = next(m for m in body.modules() if isinstance(m, nn.Linear))
                h = linear(h).relu()
                squares, width = h.square(), h.shape[1]
                g = squares.sum(1) - width if form == "sum" else squares.mean(1) - 2
                if k > 0 or not skip_first:
                    scores[:, label] += g
    torch.testing.assert_close(trainer.cascade(x), scores, rtol=1e-4, atol=1e-4)
    assert torch.equal(trainer.predict(x), scores.argmax(1))


def test_the_only_block_is_not_skipped() -> None:
    loss = Goodness()
    loss.build(torch.zeros(2, 4), CLASSES)
    readout = GoodnessReadout(skip_first=True)
    output = torch.rand(CLASSES * B, 4)
    readout.build([output], CLASSES)
    expected = (output.square().sum(1) - 4).view(CLASSES, B).T
    torch.testing.assert_close(readout([output], [loss]), expected)
    (alone,) = readout.per_block([output], [loss])
    torch.testing.assert_close(alone, expected)


@pytest.mark.parametrize("skip_first", [True, False])
def test_the_classifier_uses_normalized_outputs(skip_first: bool) -> None:
    torch.manual_seed(0)
    outputs = [torch.rand(B, 4), torch.rand(B, 2, 3), torch.rand(B, 5)]
    readout = ClassifierReadout(skip_first)
    readout.build(outputs, CLASSES)
    assert readout.linear.bias is None
    assert readout.linear.weight.shape == (CLASSES, 11 if skip_first else 15)
    assert not readout.linear.weight.any()
    nn.init.normal_(readout.linear.weight)
    normed = [o.flatten(1) / o.flatten(1).square().mean(1, keepdim=True).sqrt() for o in outputs]
    features = torch.cat(normed[1:] if skip_first else normed, 1)
    expected = features @ readout.linear.weight.T
    torch.testing.assert_close(readout(outputs, []), expected)
    y = torch.arange(B) % CLASSES
    torch.testing.assert_close(readout.objective(outputs, y), F.cross_entropy(expected, y))


def test_the_classifier_is_trained_and_evaluated_on_neutral_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = ForwardForward(make_mlp(), progress=False, overlay="force")
    data = vectors()
    data.x[:, :CLASSES] = 0.0
    trainer.build(data.sample_shape, data.n_classes)
    x, y = data.batch(torch.arange(16))
    heard: list[list[Tensor]] = []
    objective = ClassifierReadout.objective

    def listening(self: ClassifierReadout, outputs: Any, y: Tensor) -> Tensor:
        heard.append(list(outputs))
        return objective(self, outputs, y)

    monkeypatch.setattr(ClassifierReadout, "objective", listening)
    with torch.no_grad():
        expected = trainer.cascade.outputs(trainer.cascade.encoding.view(x, "neutral"))
    trainer.step(x, y)
    assert ClassifierReadout.view == "neutral"
    for ours, theirs in zip(heard[0], expected, strict=True):
        assert torch.equal(ours, theirs)
        assert not ours.requires_grad


def test_a_readout_without_parameters_has_no_objective() -> None:
    with pytest.raises(TypeError, match="no parameters to train"):
        BlockReadout().objective([], torch.zeros(0))


def test_skip_first_of_two_blocks_uses_the_second() -> None:
    torch.manual_seed(0)
    outputs = [torch.rand(CLASSES * B, width) for width in (4, 7)]
    losses: list[LocalLoss] = [Goodness() for _ in outputs]
    for loss, output in zip(losses, outputs, strict=True):
        loss.build(output, CLASSES)
    readout = GoodnessReadout(skip_first=True)
    readout.build(outputs, CLASSES)
    second = outputs[1].square().sum(1) - 7
    torch.testing.assert_close(readout(outputs, losses), second.view(CLASSES, B).T)
    first = outputs[0].square().sum(1) - 4
    torch.testing.assert_close(readout(outputs[:1], losses[:1]), first.view(CLASSES, B).T)
    both = GoodnessReadout(skip_first=False)
    both.build(outputs, CLASSES)
    torch.testing.assert_close(both(outputs, losses), (first + second).view(CLASSES, B).T)


def test_the_one_pass_readout_uses_the_magnitudes_of_all_blocks() -> None:
    torch.manual_seed(0)
    outputs = [torch.randn(B, width) for width in (4, 7, 5)]
    losses: list[LocalLoss] = [Goodness() for _ in outputs]
    readout = OnePassReadout()
    readout.build(outputs, CLASSES)
    assert readout.linear.weight.shape == (CLASSES, 4 + 7 + 5)
    nn.init.normal_(readout.linear.weight)
    scores = readout(outputs, losses)
    torch.testing.assert_close(readout([-o for o in outputs], losses), scores)
    torch.testing.assert_close(readout([o * torch.randn(o.shape).sign() for o in outputs], losses), scores)
    lengths = [o.square().mean(1, keepdim=True).sqrt() for o in outputs]
    normalized = torch.cat([o.abs() / n for o, n in zip(outputs, lengths, strict=True)], 1)
    torch.testing.assert_close(scores, normalized @ readout.linear.weight.T)
