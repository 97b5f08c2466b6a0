"""Metrics: their values by hand, their direction, and the old rows of a run's history."""

from __future__ import annotations

import pytest
import torch

from bpfree import BadValue, MonoForward
from bpfree.metrics import ACCURACY, METRICS, MSE, ROC_AUC, Metric
from bpfree.trainers import History
from tests.helpers import make_mlp, vectors


def test_values_by_hand() -> None:
    scores = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [0.5, 0.0]])
    assert ACCURACY(scores, torch.tensor([1, 1, 1, 0])) == 0.75
    assert MSE(scores, scores + 2.0) == 4.0
    # Of the 4 pairs of an edge and a pair that is none, the edge scores higher in 3.
    assert ROC_AUC(torch.tensor([[0.1], [0.4], [0.35], [0.8]]), torch.tensor([0, 0, 1, 1])) == 0.75


def test_the_area_needs_both_labels() -> None:
    with pytest.raises(BadValue, match="all 3 pairs have the label 1"):
        ROC_AUC(torch.rand(3, 1), torch.ones(3, dtype=torch.long))


def test_the_accuracy_of_images_is_refused() -> None:
    with pytest.raises(BadValue, match=r"accuracy of scores \[2, 1, 4, 4\] and targets \[2, 1, 4, 4\].*MSE"):
        ACCURACY(torch.rand(2, 1, 4, 4), torch.rand(2, 1, 4, 4))


def test_chance_ignores_the_input() -> None:
    y = torch.tensor([0, 2, 2, 1, 2])
    chances = {name: metric.chance and metric.chance(y) for name, metric in METRICS.items()}
    assert chances == {"accuracy": 0.6, "roc_auc": 0.5, "mse": None}


def test_a_name_must_be_an_identifier() -> None:
    assert Metric("top5", ACCURACY.function).label == "top5"
    with pytest.raises(BadValue, match="Metric name = 'top 5'"):
        Metric("top 5", ACCURACY.function)


class Errors(MonoForward):
    """Its metric is the share of samples that are not classified rightly."""

    metric = Metric("error", lambda s, y: 1 - ACCURACY(s, y), greater_is_better=False, share=True)


def test_the_smaller_error_is_the_better_epoch() -> None:
    found = {}
    for kind in (MonoForward, Errors):
        trainer = kind(make_mlp(), lr=3e-2, progress=False)
        history = trainer.fit(vectors(), vectors(), epochs=6, patience=2, batch_size=8)
        found[kind] = history, trainer
    (shares, by_share), (errors, by_error) = found.values()
    last = by_share.cascade.headline
    assert [row["metric"] for row in errors.rows] == ["error"] * len(errors.rows)
    assert [1 - row["validation"][last] for row in errors.rows] == pytest.approx(
        [row["validation"][last] for row in shares.rows]
    )
    (stage,), (own,) = shares.stages, errors.stages
    assert own.pop("best") == pytest.approx(1 - stage.pop("best")) and own == stage
    for mine, theirs in zip(
        by_error.cascade.state_dict().values(), by_share.cascade.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs)
    told = by_error.evaluate(vectors())
    assert list(told) == ["error", "readouts", "blocks"]
    assert told["error"] == pytest.approx(1 - by_share.evaluate(vectors())["accuracy"])


def test_rows_of_an_old_checkpoint_get_the_name_and_the_sign() -> None:
    old = [{"stage": "all", "epoch": 1}, {"stage": "all", "epoch": 2, "validation": {"last": -0.5}}]
    history = History(old, [{"name": "all", "best": -0.5}])
    for _ in range(2):
        history.name_metric(MSE)
        assert history.rows[1]["validation"] == {"last": 0.5} and history.rows[1]["metric"] == "mse"
        assert "metric" not in history.rows[0] and history.stages[0]["best"] == 0.5


def test_the_old_place_of_accuracy_warns() -> None:
    from bpfree import losses

    with pytest.warns(FutureWarning, match=r"bpfree.losses.accuracy is now bpfree.metrics.accuracy"):
        assert losses.accuracy is ACCURACY.function
