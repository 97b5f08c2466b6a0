"""Evaluation, with and without the outputs of frozen blocks kept."""

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
    found = Evaluator(cascade, data).scores(list(cascade.readouts))
    with torch.no_grad():
        for name in cascade.readouts:
            readout = cascade.readout(name)
            rows = cascade.encoding.view(data.x, readout.view)
            expected = readout(cascade.outputs(rows), cascade.losses)
            torch.testing.assert_close(found[name], expected)
            if readout.scores_blocks and name == next(
                n for n in cascade.readouts if cascade.readout(n).scores_blocks
            ):
                alone = readout.per_block(cascade.outputs(rows), cascade.losses)
                for k, scores in enumerate(alone):
                    torch.testing.assert_close(found[f"block {k + 1}"], scores)


@pytest.mark.parametrize("kind", [MonoForward, ForwardForward])
def test_kept_outputs_change_nothing_and_spare_the_frozen_blocks(
    kind: type[Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "BATCH", 16)
    trainer = built(kind)
    cascade, data = trainer.cascade.eval(), vectors()
    names = [n for n in cascade.readouts if cascade.readout(n).scores_blocks]
    kept, fresh = Evaluator(cascade, data, cache=True), Evaluator(cascade, data)
    calls = [0, 0, 0]
    for k, block in enumerate(cascade.units):
        block.body.register_forward_hook(lambda *_, k=k: calls.__setitem__(k, calls[k] + 1))
    for height in (1, 2):
        for evaluator in (kept, fresh):
            evaluator.freeze_below(height, names)
        calls[:] = [0, 0, 0]
        ours = kept.scores(names, height + 1)
        # Blocks below the height are not asked again, those above do not exist yet. A batch of 16 rows is
        # 16 samples, or 5 under each of 3 labels.
        batches = 3 if kind is MonoForward else 8
        assert calls == [batches if k == height else 0 for k in range(3)]
        theirs = fresh.scores(names, height + 1)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def kept_values(evaluator: Evaluator) -> int:
    """How many numbers an evaluator holds."""
    held = [kept.rows for kept in evaluator._kept.values()]
    held += [t for kept in evaluator._kept.values() for heard in kept.heard.values() for t in heard]
    return sum(t.numel() for t in held if t is not None)


def test_of_frozen_blocks_scores_are_kept_and_the_highest_ones_output_alone() -> None:
    net = make_mlp(20, 16, 18)
    trainer = ForwardForward(net, progress=False, readout="goodness", classifier=False)
    trainer.build((12,), CLASSES)
    evaluator = Evaluator(trainer.cascade, vectors(), cache=True)
    rows = CLASSES * 40
    for height, width in ((1, 20), (2, 16), (3, 0)):
        evaluator.freeze_below(height, ["goodness"])
        assert kept_values(evaluator) == rows * (height + width)


def test_views_that_nobody_asks_for_any_more_are_forgotten() -> None:
    trainer = built(ForwardForward)
    evaluator = Evaluator(trainer.cascade, vectors(), cache=True)
    evaluator.freeze_below(2, ["goodness"])
    evaluator.freeze_below(3, ["classifier"])
    # The classifier hears the features of all three blocks, 16 wide each, of one row a sample.
    assert kept_values(evaluator) == 3 * 40 * 16
    fresh = Evaluator(trainer.cascade, vectors())
    ours, theirs = (e.scores(["classifier"])["classifier"] for e in (evaluator, fresh))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["random_features", "cafo"])
def test_what_the_next_front_answers_is_kept_in_place_of_what_it_was_asked(name: str) -> None:
    trainer = TRAINERS[name](make_mlp(20, 16, 18), progress=False)
    trainer.build((12,), CLASSES)
    evaluator, fresh = (Evaluator(trainer.cascade, vectors(), cache=cache) for cache in (True, False))
    names = list(trainer.cascade.readouts)
    for height, width in ((0, 20), (1, 16), (2, 18), (3, 0)):
        evaluator.freeze_below(height, names)
        # Scores of three classes by each frozen block, and the next front's answers.
        assert kept_values(evaluator) == 40 * (height * CLASSES + width)
        stop = min(height + 1, 3)
        ours, theirs = evaluator.scores(names, stop), fresh.scores(names, stop)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
        found = list(evaluator.outputs(stop - 1, stop)) if height < 3 else []
        for (output, y), (same, _) in zip(found, fresh.outputs(stop - 1, stop), strict=False):
            assert torch.equal(output, same)
            assert torch.equal(y, vectors().y)


def test_each_head_is_asked_once_for_all_readouts(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, asked = built(MonoForward), [0]
    scores = LocalCrossEntropy.scores

    def counting(self: LocalCrossEntropy, output: torch.Tensor) -> torch.Tensor:
        asked[0] += 1
        return scores(self, output)

    monkeypatch.setattr(LocalCrossEntropy, "scores", counting)
    Evaluator(trainer.cascade, vectors()).scores(list(trainer.cascade.readouts))
    assert asked == [3]


def test_the_first_few_samples_alone() -> None:
    trainer, data = built(MonoForward), vectors()
    few = Evaluator(trainer.cascade, data).first(7).scores(["last"])
    everyone = Evaluator(trainer.cascade, data).scores(["last"])
    assert few["last"].shape == (7, CLASSES)
    torch.testing.assert_close(few["last"], everyone["last"][:7])
    assert Evaluator(trainer.cascade, data).first(1000).n_samples == 40


def test_accuracies_are_the_share_of_right_answers() -> None:
    trainer, data = built(MonoForward), vectors()
    evaluator = Evaluator(trainer.cascade, data)
    for name, scores in evaluator.scores(["last", "sum"]).items():
        right = sum(int(row.argmax()) == int(y) for row, y in zip(scores, data.y, strict=True))
        assert evaluator.evaluate(ACCURACY, ["last", "sum"])[name] == pytest.approx(right / 40)
