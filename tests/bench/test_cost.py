"""Counted costs against formulas written out by hand."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch

import bpfree
from bpfree.bench.cost import BatchCost, Cost, StageFlops, measure
from bpfree.trainers import FitSettings, History
from tests.helpers import make_gnn, nodes

WIDTHS, CLASSES, BATCH = (64, 32, 16), 10, 8


@pytest.fixture(scope="module")
def digits() -> bpfree.data.Splits:
    return bpfree.data.load("digits")


def cost_of(digits: bpfree.data.Splits, kind: type[bpfree.Trainer], **settings: Any) -> Cost:
    def make() -> bpfree.Trainer:
        torch.manual_seed(0)
        return kind(bpfree.nn.mlp([*WIDTHS, CLASSES]), progress=False, **settings)

    return measure(make, digits, FitSettings(batch_size=BATCH))


def block_step(n_in: int, n_out: int) -> int:
    """A linear layer with a linear head: two products for the body, three for the head."""
    return 2 * BATCH * (2 * n_in * n_out + 3 * n_out * CLASSES)


@pytest.mark.parametrize("schedule", ["simultaneous", "greedy"])
def test_a_local_step_is_the_sum_of_its_blocks(digits: bpfree.data.Splits, schedule: str) -> None:
    cost = cost_of(digits, bpfree.MonoForward, schedule=schedule)
    by_block = [block_step(64, 32), block_step(32, 16)]
    assert cost.steps() == (by_block if schedule == "greedy" else [sum(by_block)])


def test_a_backpropagation_step_has_no_input_gradient_of_the_first_layer(digits: bpfree.data.Splits) -> None:
    forward = sum(a * b for a, b in ((64, 32), (32, 16), (16, CLASSES)))
    assert cost_of(digits, bpfree.Backprop).steps() == [2 * BATCH * (3 * forward - 64 * 32)]


def test_a_greedy_run_computes_features_once_for_every_sample(digits: bpfree.data.Splits) -> None:
    cost = cost_of(digits, bpfree.MonoForward, schedule="greedy")
    history = History(stages=[{"epochs": 3}, {"epochs": 5}])
    first, second = block_step(64, 32), block_step(32, 16)
    cached = 2 * BATCH * 64 * 32
    expected = 100 / BATCH * (3 * first + 5 * second + cached)
    assert cost.flops(history, 100)["train_total"] == pytest.approx(expected, rel=1e-12)


def test_optimizers_of_a_greedy_run_are_held_one_at_a_time(digits: bpfree.data.Splits) -> None:
    def adam(*sizes: int) -> int:
        return sum(4 * (2 * size + 1) for size in sizes)  # two moments and a count of steps

    # The network's own output layer, which has a bias, is the head of the last block; an added head has none.
    first, second = adam(64 * 32, 32, 32 * CLASSES), adam(32 * 16, 16, 16 * CLASSES, CLASSES)
    assert cost_of(digits, bpfree.MonoForward).memory["optim"] == first + second
    assert cost_of(digits, bpfree.MonoForward, schedule="greedy").memory["optim"] == max(first, second)


def test_gradients_of_local_steps_are_held_one_block_at_a_time(digits: bpfree.data.Splits) -> None:
    first, second = 4 * (64 * 32 + 32 + 32 * CLASSES), 4 * (32 * 16 + 16 + 16 * CLASSES + CLASSES)
    assert cost_of(digits, bpfree.MonoForward).memory["grads"] == max(first, second)
    whole = cost_of(digits, bpfree.Backprop)
    assert whole.memory["grads"] == whole.memory["params"]


def test_greedy_saves_as_much_as_its_largest_block(digits: bpfree.data.Splits) -> None:
    saved = [
        cost_of(digits, bpfree.MonoForward, schedule=s).memory["saved_bytes"]
        for s in ("simultaneous", "greedy")
    ]
    assert saved[0] == saved[1] > 0


def test_the_end_of_an_epoch_is_counted_once_per_epoch() -> None:
    one = [(StageFlops(calibrate=4, cache=10, train=2 * 50), 2)]
    two = [(StageFlops(calibrate=8, cache=16, train=2 * 80), 2)]
    cost = BatchCost(batch=10, one=one, two=two, infer=1, memory={})
    # 30 a step, 20 a pass; 6 a batch kept, 4 a batch for statistics of at most 10 000 samples
    found = cost.flops(History(stages=[{"epochs": 3}]), 20_000)
    assert found["train_step"] == 30
    assert found["train_total"] == 3 * (2_000 * 30 + 20) + 2_000 * 6 + 1_000 * 4


def test_blocks_that_are_trained_beforehand_are_counted(digits: bpfree.data.Splits) -> None:
    def cafo(**settings: Any) -> Cost:
        def make() -> bpfree.Trainer:
            net = bpfree.nn.cafo_cnn((1, 8, 8), CLASSES, channels=[4, 8])
            return bpfree.CascadedForward(net, progress=False, **settings)

        return measure(make, digits, FitSettings(batch_size=BATCH))

    random, dfa = cafo(), cafo(blocks="dfa", block_epochs=2)
    assert dfa.steps()[1:] == random.steps()
    assert isinstance(dfa, BatchCost) and dfa.two[0][1] == 2
    assert dfa.steps()[0] > sum(random.steps())


def test_costs_on_a_graph_are_those_of_whole_epochs() -> None:
    data = nodes()
    rest = torch.tensor([i for i in range(60) if i not in data.ids.tolist()])[:9]
    splits: Any = bpfree.data.GraphSplits(data, replace(data, ids=rest, y=data.y[:9]), data)

    def make() -> bpfree.Trainer:
        return bpfree.ForwardGNN(make_gnn(), progress=False)

    cost = measure(make, splits, FitSettings(batch_size=1000))
    assert cost.batch == len(data) == 40
    # Forward and weights of 40 rows and 3 virtual ones; similarities, forward and both backward.
    expected = [4 * 43 * width * 16 + 6 * 40 * 16 * 3 for width in (12, 16)]
    assert cost.steps() == expected
    few, more = (
        cost.flops(History(stages=[{"epochs": a}, {"epochs": b}]), 40)["train_total"]
        for a, b in ((1, 1), (3, 5))
    )
    assert more - few == 2 * expected[0] + 4 * expected[1]
    edges = data.graph.n_edges + 40 + 63
    raised = 2 * 63 * 12 * 16
    assert few - sum(expected) >= 2 * edges * (12 + 16) + raised


def test_counting_runs_give_no_warnings(digits: bpfree.data.Splits) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cost_of(digits, bpfree.Backprop, lr=1e-9)
