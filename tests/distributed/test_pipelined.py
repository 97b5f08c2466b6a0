"""The pipelined schedule against the simultaneous one: the same bits, by any number of workers."""

from __future__ import annotations

import itertools
import os
import random
import time
from itertools import accumulate, combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from bpfree import (
    BadValue,
    CascadedForward,
    CounterCurrentLearning,
    ForwardForward,
    ForwardGNN,
    MonoForward,
    Trainer,
)
from bpfree.distributed import start as starting
from bpfree.distributed.partition import balanced_groups, block_costs, check_pipelined
from bpfree.distributed.pipelined import PipelinedWorkers
from tests.helpers import CLASSES, easy, make_gnn, make_mlp, nodes, snapshot
from tests.workers import run


def make(kind: str, schedule: str, **settings: Any) -> Trainer:
    common: dict[str, Any] = {"schedule": schedule, "progress": False} | settings
    net = make_mlp(16, 16, 16, 16)
    if kind == "dropout":
        layers = [m for stage in net for m in (stage, torch.nn.Dropout(0.3))][:-1]
        return MonoForward(torch.nn.Sequential(*layers), lr=0.01, **common)
    if kind == "mono_forward":
        return MonoForward(net, lr=0.01, **common)
    if kind == "forward_forward":
        return ForwardForward(net, **{"readout": "goodness", "classifier": False} | common)
    if kind == "cafo":
        return CascadedForward(net, lr=0.01, **common)
    if kind == "closed_form":
        return CascadedForward(net, predictor="closed_form", lam=[0.01], **common)
    assert kind == "counter_current"
    return CounterCurrentLearning(net, lr=0.5, **common)


def fitted(kind: str, schedule: str, pipeline: dict[str, Any] | None = None) -> dict[str, Any]:
    # 100 samples end in a batch of 4.
    trainer = make(kind, schedule)
    history = trainer.fit(easy(100), easy(60, seed=1), epochs=3, batch_size=16, pipeline=pipeline)
    test = trainer.evaluate(easy(60, seed=2))
    return {
        "weights": snapshot(trainer.cascade),
        "rows": history.rows,
        "stages": history.stages,
        "test": test,
    }


def same(result: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, tensor in expected["weights"].items():
        assert torch.equal(result["weights"][name], tensor), name
    assert {k: v for k, v in result.items() if k != "weights"} == {
        k: v for k, v in expected.items() if k != "weights"
    }


@pytest.mark.parametrize(
    ("kind", "n"),
    [("mono_forward", 1), ("mono_forward", 2), ("mono_forward", 4), ("forward_forward", 2), ("cafo", 3),
     ("closed_form", 2), ("dropout", 3)],
)  # fmt: skip
def test_workers_give_the_bits_of_the_simultaneous_schedule(kind: str, n: int, tmp_path: Path) -> None:
    expected = fitted(kind, "simultaneous")
    for result in run(tmp_path, n, fitted, kind, "pipelined"):
        same(result, expected)


def twice() -> list[dict[str, Any]]:
    return [fitted("mono_forward", "pipelined") for _ in range(2)]


def test_workers_that_torchrun_starts_make_and_end_a_process_group_for_each_run() -> None:
    for results in run(None, 2, twice):
        for each in results:
            same(each, fitted("mono_forward", "simultaneous"))


def restarted() -> list[dict[str, Any]]:
    results = []
    for start in ("0", "1"):
        os.environ["TORCHELASTIC_RESTART_COUNT"] = start
        starting._RUNS = itertools.count()  # as in a process that has just begun
        if start == "1" and os.environ["RANK"] == "0":
            time.sleep(1)  # the other one reads its address before there is a new one
        results.append(fitted("mono_forward", "pipelined"))
    return results


def test_workers_that_torchrun_starts_again_do_not_use_the_addresses_of_those_that_are_gone() -> None:
    for results in run(None, 2, restarted):
        for each in results:
            same(each, fitted("mono_forward", "simultaneous"))


# ---- messages from above ---------------------------------------------------------------------------------


def test_waiting_for_the_newest_message_is_the_simultaneous_schedule(tmp_path: Path) -> None:
    expected = fitted("counter_current", "simultaneous")
    same(fitted("counter_current", "pipelined"), expected)
    results = run(tmp_path, 3, fitted, "counter_current", "pipelined", {"staleness": 0})
    for worker in results:
        for row in worker["rows"]:
            assert row.pop("age") == {"mean": [0.0, 0.0], "largest": [0, 0]}
        same(worker, expected)


@pytest.mark.parametrize("staleness", [None, 1])
def test_messages_from_above_have_an_age_that_is_reported_and_may_be_bounded(
    staleness: int | None, tmp_path: Path
) -> None:
    results = run(tmp_path, 2, fitted, "counter_current", "pipelined", {"staleness": staleness, "queue": 2})
    assert results[0]["rows"] == results[1]["rows"]
    ages = [row["age"] for row in results[0]["rows"]]
    assert all(0 <= age["mean"][0] <= age["largest"][0] <= (11 if staleness is None else 1) for age in ages)
    same(results[1], results[0])


# ---- how blocks are given out ----------------------------------------------------------------------------


def test_groups_are_cut_where_the_largest_is_smallest() -> None:
    def best(costs: list[float], n: int) -> float:
        cuts = combinations(range(1, len(costs)), n - 1)
        return min(max(sum(costs[a:b]) for a, b in pairwise([0, *cut, len(costs)])) for cut in cuts)

    draw = random.Random(0)
    for n_blocks in (1, 2, 5, 7):
        for n in range(1, n_blocks + 1):
            costs = [draw.uniform(0.1, 5) for _ in range(n_blocks)]
            groups = balanced_groups(costs, n)
            assert len(groups) == n
            assert min(groups) >= 1
            assert sum(groups) == n_blocks
            edges = [0, *accumulate(groups)]
            assert max(sum(costs[a:b]) for a, b in pairwise(edges)) == pytest.approx(best(costs, n))


def test_costs_are_the_products_of_a_step_and_counting_changes_nothing() -> None:
    trainer = make("mono_forward", "pipelined")
    trainer.build((12,), CLASSES)
    before = snapshot(trainer.cascade)
    x, y = easy(8).batch(torch.arange(8))
    costs = block_costs(trainer.cascade, x, y, None)
    # Body: forward, and the gradient by its weights; head: both gradients. Two operations a product.
    body = [2 * 2 * 8 * width * 16 for width in (12, 16, 16, 16)]
    head = 3 * 2 * 8 * 16 * CLASSES
    assert costs == [b + head + 8 * 16 for b in body]
    assert all(torch.equal(t, before[name]) for name, t in trainer.cascade.state_dict().items())
    assert all(p.grad is None for p in trainer.cascade.parameters())


def refused(kind: str, settings: dict[str, Any], pipeline: dict[str, Any]) -> str:
    with pytest.raises(BadValue) as caught:
        make(kind, "pipelined", **settings).fit(easy(20), epochs=1, pipeline=pipeline)
    return str(caught.value)


def all_refusals() -> list[str]:
    return [
        refused("mono_forward", {}, {"groups": [3, 2]}),
        refused("mono_forward", {}, {"groups": [4]}),
        refused("forward_forward", {"readout": "classifier", "classifier": True}, {}),
        refused("counter_current", {"joint": True}, {}),
        refused("cafo", {"blocks": "dfa"}, {}),
    ]


def test_what_workers_cannot_train_is_refused(tmp_path: Path) -> None:
    for messages in run(tmp_path, 2, all_refusals):
        for message, part in zip(
            messages,
            [
                "pipeline.groups = [3, 2]: expected 2 numbers, one for each worker, whose sum is 4",
                "pipeline.groups = [4]: expected 2 numbers",
                "the readout 'classifier' is trained on the outputs of all blocks at every step",
                "with 2 workers: expected at most 1, the number of blocks",
                "cafo trains its fronts before its blocks, which several workers cannot do",
            ],
            strict=True,
        ):
            assert part in message
    with pytest.raises(BadValue, match="nodes of a graph cannot be split"):
        cascade = ForwardGNN(make_gnn(), progress=False)
        cascade.build_for(nodes())
        check_pipelined(cascade.cascade, 2, None)
    with pytest.raises(BadValue, match=r"pipeline.queue = 0: input should be greater than or equal to 1"):
        make("mono_forward", "pipelined").fit(easy(20), pipeline={"queue": 0})


# ---- for as long as it takes -----------------------------------------------------------------------------


def many_steps() -> tuple[list[int], int]:
    """Sends and receives that are open after each epoch, and the file handles that came."""
    trainer, held = make("counter_current", "pipelined"), []
    report = PipelinedWorkers.report_age

    def counting(self: PipelinedWorkers) -> dict[str, Any]:
        n = self.neighbors
        ends = (n.inputs, n.outputs, n.feedback_below, n.feedback_above)
        held.append(sum(len(end) for end in ends if end is not None))
        held.append(0 if n.outputs is None else len(n.outputs.stored))
        return report(self)

    PipelinedWorkers.report_age = counting  # type: ignore[method-assign]
    before = len(list(Path("/proc/self/fd").iterdir()))
    trainer.fit(easy(150), epochs=2, batch_size=1)
    return held, len(list(Path("/proc/self/fd").iterdir())) - before


def test_resources_do_not_grow_with_the_number_of_steps(tmp_path: Path) -> None:
    for held, handles in run(tmp_path, 2, many_steps):
        # At the end of an epoch no receive is posted; completed sends are discarded later.
        assert len(held) == 4
        assert all(n <= 8 for n in held), held
        assert handles <= 8
