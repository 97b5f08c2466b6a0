"""Values are compared only under equal conditions; others are listed in notes."""

from __future__ import annotations

from typing import Any

import pytest

from bpfree.bench.arms import Arm, groups
from bpfree.bench.measures import COSTS, against_baseline, compare, left_out, mixed, on_one_chart
from bpfree.bench.report import html
from bpfree.bench.report.tables import results
from bpfree.bench.targets import target_cost
from tests.bench.rows import Row, arm, row

FIVE = [0.95, 0.951, 0.952, 0.9505, 0.9515]


def beside(**changes: Any) -> list[Row]:
    """Backpropagation that takes 2 s, and an arm that takes 1 s under conditions of its own."""
    return arm("backprop", FIVE, time__train_s=2.0) + arm("mono_forward", FIVE, time__train_s=1.0, **changes)


def effects(rows: list[Row]) -> dict[str, float]:
    return {c.measure.id: c.effect.value for c in compare(against_baseline(groups(rows)))}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"env__cpu": "Slower"}, "the machine differs: Slower, 1 thread(s); A processor, 1 thread(s)"),
        ({"env__threads": 2}, "the machine differs: A processor, 2 thread(s); A processor, 1 thread(s)"),
        ({"env__gpu_name": "A GPU"}, "the machine differs"),
        ({"protocol": {"jobs": 2}}, "2 cells at once"),
        ({"env__source": "cd"}, "the version differs: source cd, torch 2.11; source ab, torch 2.11"),
        ({"env__torch": "2.12.0"}, "the version differs"),
    ],
)
def test_times_are_compared_within_one_machine_and_version(changes: dict[str, Any], said: str) -> None:
    assert effects(beside())["train_s"] == pytest.approx(0.5)
    found = effects(beside(**changes))
    assert "train_s" not in found and found["accuracy"] == pytest.approx(0)
    (note,) = [n for n in left_out(against_baseline(groups(beside(**changes)))) if "not compared" in n]
    title = "digits, mlp hidden 32-16, fixed epochs: mono_forward against backprop: "
    assert note.startswith(f"{title}not compared in training time for 5 of 5 seeds, ") and said in note


def test_builds_of_one_release_are_one_version() -> None:
    assert left_out(against_baseline(groups(beside(env__torch="2.11+cu130")))) == []


def test_accuracies_across_versions_are_compared_with_a_note() -> None:
    notes = left_out(against_baseline(groups(beside(env__torch="2.12"))))
    assert any(
        ": compared in test accuracy, training FLOPs" in n and "although the version" in n for n in notes
    )


def test_energies_are_compared_within_one_scope() -> None:
    ours = {"energy": {"scope": "measured:rapl", "cpu_gross_j": 10.0}}
    theirs = {"energy": {"scope": "measured:nvml_counter", "gpu_gross_j": 40.0}}
    rows = arm("backprop", FIVE, **theirs) + arm("mono_forward", FIVE, **ours)
    assert "energy_j" not in effects(rows)
    assert any(
        "the scope differs: measured:rapl; measured:nvml_counter" in n
        for n in left_out(against_baseline(groups(rows)))
    )
    same = arm("backprop", FIVE, **theirs) + arm("mono_forward", FIVE, **theirs)
    assert effects(same)["energy_j"] == pytest.approx(1)


def test_runs_are_paired_one_by_one() -> None:
    rows = beside()
    for one in rows:
        if one["seed"] == 3:
            one["env"]["cpu"] = "Slower"  # both arms moved: still a pair
    rows[-1]["env"]["cpu"] = "Another"  # seed 4 of one arm alone
    (found,) = compare(against_baseline(groups(rows)), [COSTS["train_s"]])
    assert (found.effect.n, found.effect.value) == (4, pytest.approx(0.5))
    # A mean over two machines is none, and neither is a median to a target.
    assert COSTS["train_s"].averaged(groups(rows)[0].arms[0]) == []
    assert target_cost(groups(rows)[0].arms[0], 0.85).train_s is None
    assert any(
        "training time of mono_forward not shown as a mean, the machine" in n for n in mixed(groups(rows))
    )


def test_a_mean_over_versions_has_a_note() -> None:
    rows = arm("backprop", FIVE)
    assert mixed(groups(rows)) == []
    rows[0]["env"]["torch"] = "2.10"
    (note,) = mixed(groups(rows))
    assert note.endswith(
        "backprop is a mean over several versions: source ab, torch 2.10; source ab, torch 2.11"
    )


def test_arms_without_a_common_seed_have_a_note() -> None:
    rows = [*arm("backprop", FIVE), row("mono_forward", 7)]
    (note,) = left_out(against_baseline(groups(rows)))
    assert note.endswith("not compared, no seed in common (mono_forward has 7; backprop has 0, 1, 2, 3, 4)")


def test_a_chart_shows_what_may_be_compared() -> None:
    found = groups(beside(env__cpu="Slower") + arm("cafo", FIVE))[0].arms
    assert [a.name for a in on_one_chart(COSTS["train_s"], found)] == ["backprop", "cafo"]
    assert len(on_one_chart(COSTS["train_flops"], found)) == 3
    content = html(beside(env__cpu="Slower") + arm("cafo", FIVE))
    assert "Left out, as their version or machine differs: mono_forward." in content
    assert "not compared in training time for 5 of 5 seeds, the machine differs" in content


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_a_value_that_is_no_number_is_skipped(value: float | None) -> None:
    rows = beside()
    for one in rows[:5]:
        one["metrics"]["test_accuracy"] = value
    rows[5]["time"]["train_s"] = -3.0
    assert "accuracy" not in effects(rows)
    assert COSTS["train_s"].by_seed(Arm("x", rows[5:])).keys() == {1, 2, 3, 4}
    found = groups(rows)
    (first, *_) = results(found, compare(against_baseline(found))).rows
    assert first[0].text == "backprop" and "nan" not in str(first)
