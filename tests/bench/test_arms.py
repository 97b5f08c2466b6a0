"""Grouping of rows into arms."""

from __future__ import annotations

import pytest

from bpfree import BadValue
from bpfree.bench.arms import alone, failures, groups, last_line
from bpfree.bench.results import successes
from tests.bench.rows import arm, row


def test_rows_are_grouped_by_setting_and_arm() -> None:
    other = {"config__net": {"name": "mlp", "hidden": [8]}}
    rows = arm("backprop", [0.9, 0.8]) + arm("mono_forward", [0.7]) + arm("mono_forward", [0.6], **other)
    found = groups(rows)
    assert [[(a.name, len(a.rows)) for a in group.arms] for group in found] == [
        [("backprop", 2), ("mono_forward", 1)],
        [("mono_forward", 1)],
    ]
    assert found[0].title == "digits, mlp hidden 32-16, fixed epochs"
    assert found[1].baseline is None


def test_many_equal_widths_are_counted() -> None:
    for widths, told in (([7] * 16, "16×7"), ([7] * 3, "7-7-7"), ([7, 7, 7, 8], "7-7-7-8")):
        rows = arm("backprop", [0.9], config__net={"name": "mlp", "hidden": widths})
        assert groups(rows)[0].setting == f"digits, mlp hidden {told}"


def test_one_name_with_other_settings_is_another_arm() -> None:
    rows = arm("mono_forward", [0.9]) + arm("mono_forward", [0.8], config__trainer__lr=0.5)
    assert [a.name for a in groups(rows)[0].arms] == ["mono_forward", "mono_forward [trainer.lr=0.5]"]


def test_surrogates_and_recordings_are_named_in_tables() -> None:
    for kind, name in (
        ("surrogate", "physical (fitted surrogate)"), ("recorded", "physical (recorded)"),
        ("simulated", "physical"), ("device", "physical"),
    ):  # fmt: skip
        rows = arm("physical", [0.9], physics={"devices": [{"kind": kind}]})
        assert groups(rows)[0].arms[0].name == name


def test_single_blocks_are_shown_if_there_are_several() -> None:
    def told(*blocks: list[float | None]) -> str:
        rows = [row("forward_gnn", seed, metrics__blocks=own) for seed, own in enumerate(blocks)]
        return alone(groups(rows)[0].arms[0])

    assert told([0.9, 0.5], [0.8, 0.6]) == "85.0 55.0"
    assert told([0.9, None], [0.8, 0.6]) == "85.0 –"
    assert told([0.1 * k for k in range(1, 9)]) == "10.0 20.0 30.0 … 80.0"
    assert told([0.9]) == told([]) == told([0.9, 0.5], []) == ""


def test_of_several_baselines_the_best_by_validation_counts() -> None:
    rows = arm("backprop", [0.99], "test wins", config__trainer__lr=0.3, metrics__val_accuracy=0.7)
    rows += arm("backprop", [0.5], "validation wins", metrics__val_accuracy=0.8)
    baseline = groups(rows)[0].baseline
    assert baseline is not None and baseline.name == "validation wins"


def test_the_group_of_matched_passes_has_the_baseline_of_own_convergence() -> None:
    own = {"config__fit__patience": 3}
    rows = arm("backprop", [0.9], **own) + arm("mono_forward", [0.8], **own)
    rows += arm("mono_forward", [0.85], protocol={"id": "B", "matched_passes": 7.5})
    first, second = groups(rows)
    assert (first.protocol, second.protocol) == ("A", "B")
    assert second.title.endswith("matched passes")
    assert second.baseline is first.baseline is not None
    assert [a.name for a in second.arms] == ["backprop", "mono_forward"]


def test_a_failure_counts_until_the_cell_succeeds() -> None:
    failed = [row("backprop", seed, status="error", reason="first\nlast\n") for seed in (0, 1, 1)]
    found = failures([*failed, row("backprop", 0)])
    assert [one["seed"] for one in found] == [1]
    assert last_line(found[0]) == "last"
    assert last_line({"reason": " \n"}) == "no reason was given"


def test_a_cell_that_succeeded_twice_is_refused() -> None:
    with pytest.raises(BadValue, match=r"here: cell .* \(seed 4\) has two successful rows"):
        successes([row("backprop", 4), row("backprop", 4)], "here")
