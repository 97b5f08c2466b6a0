"""Blocks that are worse than those below, or at chance, are reported beside a good prediction."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

from bpfree import Local, MonoForward
from bpfree._drops import drops
from bpfree.data import TensorData
from bpfree.engine.weak_blocks import wilson
from bpfree.losses import LocalCrossEntropy, register_loss
from bpfree.metrics import largest_class
from tests.helpers import easy, make_mlp


@register_loss("tests.collapsing")
class Collapsing(LocalCrossEntropy):
    """In the third block of its network, small scores without information: a sum hides them."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).made += 1
        self.number = type(self).made

    def scores(self, output: Tensor) -> Tensor:
        scores = super().scores(output)
        return 1e-3 * scores.roll(1, 0) if self.number == 3 else scores


def fit(validation: TensorData | None, **settings: Any) -> tuple[Any, list[str]]:
    Collapsing.made = 0
    options: dict[str, Any] = {"output": "none", "readout": "sum", "lr": 0.02, "progress": False}
    trainer = Local(make_mlp(16, 16, 16), loss="tests.collapsing", **options, **settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = trainer.fit(easy(), validation, epochs=4, batch_size=16)
    return history, [str(warning.message) for warning in caught]


@pytest.mark.parametrize("schedule", ["simultaneous", "greedy"])
def test_a_collapsed_block_is_reported_though_the_sum_hides_it(schedule: str) -> None:
    history, messages = fit(easy(seed=1), schedule=schedule)
    assert history.rows[-1]["validation"]["sum"] > 0.9
    drop, at_chance = history.warnings
    assert drop.startswith("block 3 has ")
    assert drop.endswith("points less than block 2 below it")
    assert "no better than chance" in at_chance
    assert messages == [f"{at_chance}. The prediction by 'sum' hides it: try another lr or fewer blocks"]


def test_without_validation_or_without_fault_there_is_no_warning() -> None:
    assert fit(None)[0].warnings == []
    trainer = MonoForward(make_mlp(16, 16), lr=0.02, progress=False)
    assert trainer.fit(easy(), easy(seed=1), epochs=6, batch_size=16).warnings == []


def test_the_weights_that_were_restored_are_reported() -> None:
    trainer = MonoForward(make_mlp(16, 16), lr=0.02, progress=False)
    history = trainer.fit(easy(), easy(seed=1), epochs=6, batch_size=16)
    best = history.stages[0]["best_epoch"]
    accuracies = trainer.evaluate(easy(seed=1))["blocks"]
    row = history.rows[best - 1]["validation"]
    assert accuracies == pytest.approx([row["block 1"], row["block 2"]])


@pytest.mark.parametrize(("right", "n"), [(0, 10), (33, 100), (50, 50), (487, 500)])
def test_the_interval_is_wilsons(right: int, n: int) -> None:
    expected = binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right / n, n) == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_chance_is_the_share_of_the_largest_class() -> None:
    assert largest_class(torch.tensor([0, 2, 2, 1, 2])) == 0.6


def test_a_drop_is_one_of_more_than_two_points() -> None:
    assert drops({"block 1": 0.9, "block 2": 0.885, "block 3": 0.86, "block 4": 0.95}) == [
        "block 3 has 86.0 %, 2.5 points less than block 2 below it"
    ]


def test_a_prediction_that_is_no_better_than_the_largest_class_is_reported() -> None:
    trainer = MonoForward(make_mlp(), lr=1e-9, progress=False)
    validation = easy(seed=1)
    with pytest.warns(UserWarning, match="the prediction by 'last' has .* no better than the largest class"):
        history = trainer.fit(easy(), validation, epochs=1)
    assert trainer.evaluate(validation)["accuracy"] <= largest_class(validation.y)
    assert history.warnings[-1].startswith("the prediction by 'last'")
