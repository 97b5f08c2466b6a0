"""Matched passes: the cells of protocol B and their epochs."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest

from bpfree import BadValue
from bpfree.bench.cells import Cell, config_of
from bpfree.bench.config import cells
from bpfree.bench.protocol import has_matched, matched
from bpfree.bench.results import Results
from bpfree.bench.runner import run
from tests.bench.rows import Row, row

CONFIG: dict[str, Any] = {
    "dataset": {"name": "digits", "train_size": 100},
    "net": {"name": "mlp", "hidden": [16, 8]},
    "fit": {"epochs": 9, "batch_size": 50, "patience": 1},
    "trainer": {"id": "mono_forward"},
    "controls": [
        {"label": "greedy", "trainer": {"id": "mono_forward", "schedule": "greedy"}},
        {"trainer": {"id": "backprop"}},
    ],
    "seeds": [3, 4, 5],
    "protocols": ["A", "B"],
    "targets": [0.5],
}


def fabricated(found: list[Cell], passes: dict[str, list[int]], stages: dict[str, int]) -> list[Row]:
    """Rows of these cells that took so many passes, by seed."""
    counts = {arm: iter(values) for arm, values in passes.items()}
    rows = []
    for cell in sorted(found, key=lambda cell: cell.seed):
        one = row(cell.trainer.id, cell.seed, cell.arm)
        one["config"] = config_of(cell.record())
        one["budget"] |= {"passes": next(counts[cell.arm]), "stages": stages[cell.arm]}
        rows.append(one | {"cell_id": cell.id})
    return rows


def test_epochs_are_the_mean_passes_of_the_baseline_over_the_stages() -> None:
    first = cells(copy.deepcopy(CONFIG))
    passes = {"mono_forward": [1, 2, 3], "greedy": [2, 4, 6], "backprop": [5, 6, 11]}
    rows = fabricated(first, passes, {"mono_forward": 1, "greedy": 3, "backprop": 1})
    second = matched(first, rows)
    # The mean is 22 / 3 = 7.33: 8 epochs, or 3 in each of three stages.
    assert {(cell.arm, cell.fit.epochs, cell.fit.patience, cell.matched) for cell in second} == {
        ("mono_forward", 8, None, 22 / 3),
        ("greedy", 3, None, 22 / 3),
    }
    assert [(c.arm, c.seed) for c in second] == [(c.arm, c.seed) for c in first if c.arm != "backprop"]
    assert not {cell.id for cell in first} & {cell.id for cell in second}


def test_backpropagation_through_an_exact_model_of_the_device_is_a_baseline() -> None:
    ideal = {"id": "physical_backprop"}
    config = {
        "dataset": {"name": "digits"},
        "net": {"name": "physical", "hidden": [16]},
        "physics": {"system": "acoustic", "seeds": [0, 1]},
        "fit": {"patience": 1},
        "trainer": {"id": "physical"},
        "controls": [{"trainer": ideal}],
        "seeds": [3, 4],
        "protocols": ["A", "B"],
    }
    assert has_matched(config, cells(config))
    ideal["model"] = "aware"
    with pytest.raises(BadValue, match="no backprop arm"):
        has_matched(config, cells(config))


def test_an_arm_that_failed_in_part_is_matched_for_all_seeds_and_one_that_failed_is_left_out() -> None:
    first = cells(copy.deepcopy(CONFIG))
    passes = {"mono_forward": [1, 2, 3], "greedy": [2, 4, 6], "backprop": [5, 6, 11]}
    rows = fabricated(first, passes, {"mono_forward": 1, "greedy": 3, "backprop": 1})
    for one in rows:
        if one["arm"] == "greedy" or (one["arm"], one["seed"]) == ("mono_forward", 3):
            one["status"] = "error"
    assert [(c.arm, c.seed) for c in matched(first, rows)] == [("mono_forward", seed) for seed in (3, 4, 5)]


def test_what_cannot_be_matched_is_refused() -> None:
    def refusal(**changes: Any) -> str:
        config = {**copy.deepcopy(CONFIG), **changes}
        with pytest.raises(BadValue) as caught:
            has_matched(config, cells(config))
        return str(caught.value)

    assert "fit.patience" in refusal(fit={"epochs": 3, "batch_size": 50})
    assert "no backprop arm" in refusal(controls=[])
    assert "expected [A]" in refusal(protocols=["B"])
    assert not has_matched({**CONFIG, "protocols": ["A"]}, [])


def test_labels_of_a_cell_do_not_change_its_id() -> None:
    plain = cells({**copy.deepcopy(CONFIG), "targets": [], "protocols": ["A"]})
    assert [cell.id for cell in plain] == [cell.id for cell in cells(copy.deepcopy(CONFIG))]


@pytest.mark.parametrize("n", [2, 4, 10])
def test_no_arm_comes_earlier_than_another_on_the_whole(n: int) -> None:
    found = cells(copy.deepcopy(CONFIG), seeds=n)
    assert [cell.seed for cell in found] == [seed for seed in range(n) for _ in range(3)]
    at = {(cell.arm, cell.seed): i for i, cell in enumerate(found)}
    for one, other in itertools.combinations(("mono_forward", "greedy", "backprop"), 2):
        assert sum(at[one, seed] - at[other, seed] for seed in range(n)) == 0


def test_both_protocols_run_and_are_named_in_rows(tmp_path: Path) -> None:
    first = cells(copy.deepcopy(CONFIG), seeds=1)
    rows = run(first, Results(tmp_path))
    rows += run(matched(first, rows), Results(tmp_path))
    told = {(one["arm"], one["protocol"]["id"]): one for one in rows}
    assert set(told) == {(arm, "A") for arm in ("mono_forward", "greedy", "backprop")} | {
        ("mono_forward", "B"),
        ("greedy", "B"),
    }
    took = told["backprop", "A"]["budget"]["passes"]
    assert told["mono_forward", "B"]["budget"]["passes"] == took
    assert told["mono_forward", "B"]["protocol"]["matched_passes"] == took
    stages = told["greedy", "B"]["budget"]["stages"]
    assert took <= told["greedy", "B"]["budget"]["passes"] < took + stages
    assert all(one["protocol"]["targets"] == [0.5] for one in rows)
    assert all("targets" not in one["config"] and "matched" not in one["config"] for one in rows)
    # The same command again finds everything done.
    assert matched(first, run(first, Results(tmp_path))) == matched(first, rows)
    assert len(Results(tmp_path).read()) == 5


def test_cells_are_separated_by_the_cooldown_which_needs_one_job(tmp_path: Path) -> None:
    import time

    some = cells(
        {**copy.deepcopy(CONFIG), "fit": {"epochs": 1, "batch_size": 50}, "protocols": ["A"]}, seeds=1
    )
    start = time.monotonic()
    rows = run(some, Results(tmp_path), cooldown_s=1.5)
    assert time.monotonic() - start >= 2 * 1.5
    assert [one["protocol"]["cooldown_s"] for one in rows] == [1.5] * 3
    with pytest.raises(BadValue, match=r"cooldown of 1\.5 s between cells has no effect"):
        run(some, Results(tmp_path), jobs=2, cooldown_s=1.5)
