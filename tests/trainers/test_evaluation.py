"""Evaluation, with and without the outputs of frozen blocks kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import bpfree.trainers.evaluation as evaluation
from bpfree import ForwardForward, MonoForward, Trainer
from bpfree.trainers.evaluation import Evaluator
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
            if readout.tells_blocks and name == next(
                n for n in cascade.readouts if cascade.readout(n).tells_blocks
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
    names = [n for n in cascade.readouts if cascade.readout(n).tells_blocks]
    kept, fresh = Evaluator(cascade, data, cache=True), Evaluator(cascade, data)
    calls = [0, 0, 0]
    for k, block in enumerate(cascade.units):
        block.body.register_forward_hook(lambda *_, k=k: calls.__setitem__(k, calls[k] + 1))
    for height in (1, 2):
        for evaluator in (kept, fresh):
            evaluator.climb(height, names)
        calls[:] = [0, 0, 0]
        ours = kept.scores(names, height + 1)
        # Three batches; blocks below the height are not asked again, those above do not exist yet.
        assert calls == [3 if k == height else 0 for k in range(3)]
        theirs = fresh.scores(names, height + 1)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


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
        assert evaluator.accuracies(["last", "sum"])[name] == pytest.approx(right / 40)
