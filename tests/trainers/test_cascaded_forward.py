"""Cascaded-Forward: fixed blocks, their statistics, the predictors, and the order of their training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bpfree import BadValue, CascadedForward, RidgeAccumulator, nn, testing
from bpfree.data import TensorData
from bpfree.engine.feed import Feed


def images(n: int = 60, seed: int = 0) -> TensorData:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, 8, 8, generator=generator)
    y = torch.randint(3, (n,), generator=generator)
    x[:, 0, 0, 0] = y / 2
    return TensorData(x, y, 3)


def make(**settings: Any) -> CascadedForward:
    torch.manual_seed(0)
    return CascadedForward(nn.cafo_cnn((1, 8, 8), 3, (4, 6)), progress=False, **settings)


TRAIN, TEST = images(), images(seed=1)
VARIANTS = [
    {},
    {"predictor": "sparsemax"},
    {"predictor": "closed_form"},
    {"gradients": "analytic"},
    {"schedule": "simultaneous"},
]


def weights(trainer: CascadedForward) -> dict[str, torch.Tensor]:
    return {name: p.clone() for name, p in trainer.net.named_parameters()}


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_random_blocks_keep_their_bits(settings: dict[str, Any]) -> None:
    trainer = make(**settings)
    before = weights(trainer)
    trainer.fit(TRAIN, TEST, epochs=2, batch_size=16)
    for name, p in trainer.net.named_parameters():
        assert torch.equal(p, before[name]), name
        assert p.grad is None


@pytest.mark.parametrize("predictor", ["cross_entropy", "sparsemax", "closed_form"])
def test_greedy_and_simultaneous_schedules_agree(predictor: str) -> None:
    runs = [make(predictor=predictor, schedule=schedule) for schedule in ("greedy", "simultaneous")]
    for trainer in runs:
        trainer.fit(TRAIN, epochs=3, batch_size=16)
    for greedy, simultaneous in zip(runs[0].cascade.losses, runs[1].cascade.losses, strict=True):
        for p, q in zip(greedy.parameters(), simultaneous.parameters(), strict=True):
            torch.testing.assert_close(p, q)


def test_evaluation_changes_no_statistic_and_does_not_depend_on_the_batch() -> None:
    trainer = make()
    trainer.fit(TRAIN, epochs=1, batch_size=16)
    state = {name: t.clone() for name, t in trainer.cascade.state_dict().items()}
    assert state["blocks.0.front.3.running_mean"].abs().sum() > 0
    x, _ = TEST.batch(torch.arange(60))
    expected = trainer.model(x)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    in_batches = torch.cat([trainer.model(x[chunk]) for chunk in order.split(7)])
    torch.testing.assert_close(in_batches, expected[order])
    trainer.evaluate(TEST)
    for name, tensor in trainer.cascade.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_the_prediction_is_the_sum_of_probabilities() -> None:
    for predictor, transform in [("cross_entropy", torch.softmax), ("sparsemax", None)]:
        trainer = make(predictor=predictor)
        trainer.fit(TRAIN, epochs=3, batch_size=16)
        x, _ = TEST.batch(torch.arange(9))
        with torch.no_grad():
            outputs = trainer.cascade.outputs(x)
            scores = [loss.scores(o) for o, loss in zip(outputs, trainer.cascade.losses, strict=True)]
            prediction = trainer.model(x)
        if transform is None:
            torch.testing.assert_close(prediction.sum(1), torch.full((9,), 2.0))
            parts = [loss.probabilities(s) for s, loss in zip(scores, trainer.cascade.losses, strict=True)]
            assert any((p == 0).any() for p in parts)
        else:
            torch.testing.assert_close(prediction, sum(transform(s, 1) for s in scores))


@pytest.mark.parametrize("schedule", ["greedy", "simultaneous"])
def test_the_closed_form_needs_one_pass_and_caches_no_features(
    schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Feed, "_cache_next", lambda self: pytest.fail("features were cached"))
    trainer = make(predictor="closed_form", schedule=schedule, lam=[0.01])
    history = trainer.fit(TRAIN, TEST, epochs=7, batch_size=16)
    assert [stage["epochs"] for stage in history.stages] == [1] * (1 if schedule == "simultaneous" else 2)
    assert "validation" in history.rows[-1]
    assert trainer.locality == "L3"
    with torch.no_grad():
        outputs = trainer.cascade.outputs(TRAIN.batch(torch.arange(60))[0])
    for output, loss in zip(outputs, trainer.cascade.losses, strict=True):
        phi = output.flatten(1)
        weight, bias = RidgeAccumulator(phi.shape[1], 3).add(phi, TRAIN.y).solve(0.01)
        scores = loss.scores(output)
        assert scores is not None
        torch.testing.assert_close(scores, (phi.double() @ weight + bias).float(), rtol=1e-3, atol=1e-4)


def test_the_penalty_is_selected_on_outputs_for_validation_data(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    trainer = make(predictor="closed_form", schedule="simultaneous")
    trainer.build((1, 8, 8), 3)
    for loss in trainer.cascade.losses:
        solve = loss.solve
        width = loss.linear.in_features

        def recording(validation: Any, solve: Any = solve, width: int = width) -> None:
            batches = list(validation)
            counts.append(sum(len(y) for _, y in batches))
            assert all(output.flatten(1).shape[1] == width for output, _ in batches)
            solve(batches)

        monkeypatch.setattr(loss, "solve", recording)
    trainer.fit(TRAIN, TEST, batch_size=16)
    assert counts == [60, 60]


@pytest.mark.parametrize(
    "settings", [{"predictor": "closed_form"}, {"blocks": "dfa", "block_epochs": 2}], ids=str
)
def test_a_resumed_run_equals_an_uninterrupted_one(settings: dict[str, Any], tmp_path: Path) -> None:
    testing.assert_resumes(lambda: make(**settings), TRAIN, tmp_path, TEST, epochs=2)
    assert not list(tmp_path.glob("*.blocks"))


def test_blocks_can_be_trained_before_the_predictors() -> None:
    trainer, with_random_blocks = make(blocks="dfa", block_epochs=3), make()
    before = weights(trainer)
    history = trainer.fit(TRAIN, TEST, epochs=2, batch_size=16)
    with_random_blocks.fit(TRAIN, TEST, epochs=2, batch_size=16)
    after = weights(trainer)
    assert all(not torch.equal(after[name], before[name]) for name in after)
    assert [row["stage"] for row in history.rows] == ["blocks by dfa"] * 3 + ["block 1"] * 2 + ["block 2"] * 2
    steps = [row["step"] for row in history.rows]
    assert steps == [4 * (k + 1) for k in range(7)]
    assert trainer.locality == "L1"
    assert history.rows[0]["diagnosis"]["feedback_cos"]


def test_nan_in_the_data_is_refused() -> None:
    x = TRAIN.x.clone()
    x[7] = float("nan")
    for settings in VARIANTS:
        with pytest.raises(BadValue, match="number 7"):
            make(**settings).fit(TensorData(x, TRAIN.y, 3), epochs=2, batch_size=16)


def test_settings_that_do_not_fit_are_refused() -> None:
    for settings, message in [
        ({"pool": [2]}, "expected 2 sides"),
        ({"pool": [2, 1], "gradients": "analytic"}, "leave one of them out"),
        ({"lam": [-1.0], "predictor": "closed_form"}, "at least 0"),
        ({"predictor": "mse"}, "predictor"),
        ({"blocks": "trained"}, "blocks"),
    ]:
        with pytest.raises(BadValue, match=message):
            make(**settings).build((1, 8, 8), 3)


def test_each_block_has_its_own_pool() -> None:
    trainer = make(predictor="closed_form", pool=[2, None], schedule="simultaneous")
    trainer.fit(TRAIN, TEST, batch_size=16)
    assert [loss.linear.in_features for loss in trainer.cascade.losses] == [4 * 4, 6 * 4]
