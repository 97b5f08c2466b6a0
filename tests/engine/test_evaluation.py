"""Evaluation, with and without a cache of frozen blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import bpfree.engine.evaluation as evaluation
from bpfree import ForwardForward, MonoForward, Trainer
from bpfree.engine.evaluation import Evaluator
from bpfree.losses import LocalCrossEntropy
from bpfree.metrics import ACCURACY
from bpfree.trainers import TRAINERS
from tests.helpers import CLASSES, make_mlp, vectors


def built(kind: type[Trainer], **settings: Any) -> Trainer:
    trainer = kind(make_mlp(16, 16, 16), progress=False, **settings)
    trainer.build((12,), CLASSES)
    return trainer


@pytest.mark.parametrize("kind", [MonoForward, ForwardForward])
def test_scores_are_the_readouts_of_all_samples_in_order(
    kind: type[Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "BATCH", 16)
    trainer, data = built(kind), vectors()
    cascade = trainer.cascade.eval()
    actual = Evaluator(cascade, data).scores(list(cascade.readouts))
    with torch.no_grad():
        for name in cascade.readouts:
            readout = cascade.readout(name)
            rows = cascade.encoding.view(data.x, readout.view)
            expected = readout(cascade.outputs(rows), cascade.losses)
            torch.testing.assert_close(actual[name], expected)
            if readout.scores_blocks and name == next(
                n for n in cascade.readouts if cascade.readout(n).scores_blocks
            ):
                per_block = readout.per_block(cascade.outputs(rows), cascade.losses)
                for k, scores in enumerate(per_block):
                    torch.testing.assert_close(actual[f"block {k + 1}"], scores)


@pytest.mark.parametrize("kind", [MonoForward, ForwardForward])
def test_with_a_cache_scores_are_equal_and_frozen_blocks_are_not_called(
    kind: type[Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "BATCH", 16)
    trainer = built(kind)
    cascade, data = trainer.cascade.eval(), vectors()
    names = [n for n in cascade.readouts if cascade.readout(n).scores_blocks]
    cached, uncached = Evaluator(cascade, data, cache=True), Evaluator(cascade, data)
    calls = [0, 0, 0]
    for k, block in enumerate(cascade.units):
        block.body.register_forward_hook(lambda *_, k=k: calls.__setitem__(k, calls[k] + 1))
    for height in (1, 2):
        for evaluator in (cached, uncached):
            evaluator.freeze_below(height, names)
        calls[:] = [0, 0, 0]
        actual = cached.scores(names, height + 1)
        # Only the block at the height is called. A batch of 16 rows has 16 samples, or 5 with 3 labels each.
        batches = 3 if kind is MonoForward else 8
        assert calls == [batches if k == height else 0 for k in range(3)]
        expected = uncached.scores(names, height + 1)
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[name], expected[name]) for name in actual)


def cached_values(evaluator: Evaluator) -> int:
    """Number of cached values."""
    views = evaluator._cached.values()
    tensors = [view.rows for view in views]
    tensors += [t for view in views for collected in view.collected.values() for t in collected]
    return sum(t.numel() for t in tensors if t is not None)


def test_scores_of_frozen_blocks_and_the_highest_output_are_cached() -> None:
    net = make_mlp(20, 16, 18)
    trainer = ForwardForward(net, progress=False, readout="goodness", classifier=False)
    trainer.build((12,), CLASSES)
    evaluator = Evaluator(trainer.cascade, vectors(), cache=True)
    rows = CLASSES * 40
    for height, width in ((1, 20), (2, 16), (3, 0)):
        evaluator.freeze_below(height, ["goodness"])
        assert cached_values(evaluator) == rows * (height + width)


def test_the_cache_of_views_without_readouts_is_deleted() -> None:
    trainer = built(ForwardForward)
    evaluator = Evaluator(trainer.cascade, vectors(), cache=True)
    evaluator.freeze_below(2, ["goodness"])
    evaluator.freeze_below(3, ["classifier"])
    # The classifier collects the features of three blocks of width 16, for one row per sample.
    assert cached_values(evaluator) == 3 * 40 * 16
    uncached = Evaluator(trainer.cascade, vectors())
    actual, expected = (e.scores(["classifier"])["classifier"] for e in (evaluator, uncached))
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", ["random_features", "cafo"])
def test_the_output_of_the_next_front_is_cached_instead_of_its_input(name: str) -> None:
    trainer = TRAINERS[name](make_mlp(20, 16, 18), progress=False)
    trainer.build((12,), CLASSES)
    evaluator, uncached = (Evaluator(trainer.cascade, vectors(), cache=cache) for cache in (True, False))
    names = list(trainer.cascade.readouts)
    for height, width in ((0, 20), (1, 16), (2, 18), (3, 0)):
        evaluator.freeze_below(height, names)
        # Scores of three classes by each frozen block, and the outputs of the next front.
        assert cached_values(evaluator) == 40 * (height * CLASSES + width)
        stop = min(height + 1, 3)
        actual, expected = evaluator.scores(names, stop), uncached.scores(names, stop)
        assert all(torch.equal(actual[key], expected[key]) for key in expected)
        outputs = list(evaluator.outputs(stop - 1, stop)) if height < 3 else []
        for (output, y), (same, _) in zip(outputs, uncached.outputs(stop - 1, stop), strict=False):
            assert torch.equal(output, same)
            assert torch.equal(y, vectors().y)


def test_each_head_is_called_once_for_all_readouts(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, calls = built(MonoForward), [0]
    scores = LocalCrossEntropy.scores

    def counting(self: LocalCrossEntropy, output: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return scores(self, output)

    monkeypatch.setattr(LocalCrossEntropy, "scores", counting)
    Evaluator(trainer.cascade, vectors()).scores(list(trainer.cascade.readouts))
    assert calls == [3]


def test_an_evaluator_of_the_first_samples() -> None:
    trainer, data = built(MonoForward), vectors()
    few = Evaluator(trainer.cascade, data).first(7).scores(["last"])
    all_samples = Evaluator(trainer.cascade, data).scores(["last"])
    assert few["last"].shape == (7, CLASSES)
    torch.testing.assert_close(few["last"], all_samples["last"][:7])
    assert Evaluator(trainer.cascade, data).first(1000).n_samples == 40


def test_accuracy_is_the_share_of_correct_predictions() -> None:
    trainer, data = built(MonoForward), vectors()
    evaluator = Evaluator(trainer.cascade, data)
    for name, scores in evaluator.scores(["last", "sum"]).items():
        correct = sum(int(row.argmax()) == int(y) for row, y in zip(scores, data.y, strict=True))
        assert evaluator.evaluate(ACCURACY, ["last", "sum"])[name] == pytest.approx(correct / 40)
