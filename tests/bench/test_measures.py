"""Measures of rows, and costs to a target."""

from __future__ import annotations

import pytest

from bpfree.bench.arms import Arm, groups
from bpfree.bench.measures import COSTS, against_baseline, compare, on_test, readable, short, train_flops
from bpfree.bench.metric import RowMetric
from bpfree.bench.statistics import Verdict
from bpfree.bench.targets import Reached, at_target, target_cost, to_target
from tests.bench.rows import arm, row

GOOD = [0.95, 0.951, 0.952, 0.9505, 0.9515]
ACCURACY = RowMetric("accuracy")
BAD = [0.90, 0.902, 0.901, 0.9015, 0.9005]


def test_the_flops_of_old_rows_are_those_of_their_steps() -> None:
    assert train_flops(row("backprop", 0)) == 20_000_000
    old = row("backprop", 0, flops={"train_step": 7}, budget__steps=30)
    assert train_flops(old) == 210
    assert train_flops(row("mono_forward", 0, flops={"train_step": 7}, budget__stages=2)) is None


def test_a_resumed_run_has_no_time() -> None:
    measure = COSTS["train_s"]
    assert measure.read(row("backprop", 0, time__train_s=3.5)) == 3.5
    assert measure.read(row("backprop", 0, time__train_s=3.5, segments=2)) is None


def test_cpu_time_is_that_of_an_uninterrupted_run_on_a_cpu() -> None:
    measure = COSTS["train_cpu_s"]
    assert measure.read(row("backprop", 0, time__train_cpu_s=3.5)) == 3.5
    assert measure.read(row("backprop", 0)) is None
    assert measure.read(row("backprop", 0, time__train_cpu_s=3.5, segments=2)) is None
    assert measure.read(row("backprop", 0, time__train_cpu_s=3.5, config__device="cuda")) is None


def test_costs_to_a_target_are_compared_as_ratios_of_pairs() -> None:
    def runs(trainer: str, *seconds: float) -> Arm:
        curves = [[[1, 0.9, s], [2, 0.9, 99.0]] for s in seconds]
        return Arm(trainer, [row(trainer, seed, curve=curve) for seed, curve in enumerate(curves)])

    pairs = [("x", runs("mono_forward", 1.0, 4.0), runs("backprop", 2.0, 2.0))]
    (found,) = compare(pairs, [at_target(0.8, "train_s")])
    assert (found.effect.value, found.effect.n) == (pytest.approx(1.0), 2)
    assert compare(pairs, [at_target(0.95, "train_s")]) == []


def test_worse_and_better_are_distinct() -> None:
    rows = arm("backprop", GOOD, time__train_s=2.0) + arm("mono_forward", BAD, time__train_s=1.0)
    found = {c.measure.id: c for c in compare(against_baseline(groups(rows)))}
    assert found["accuracy"].loses and not found["accuracy"].wins
    assert found["train_s"].wins and not found["train_s"].loses
    assert short(found["accuracy"]).startswith("-5.00 [")
    assert short(found["train_s"]) == "×0.500"
    assert found["saved_bytes"].effect.verdict is Verdict.EQUIVALENT
    assert "peak_alloc" not in found and "energy_j" not in found


def test_the_p_values_of_a_measure_are_one_family() -> None:
    spread = [0.9505, 0.948, 0.952, 0.947, 0.9535]
    rows = arm("backprop", GOOD) + arm("mono_forward", spread)
    alone = compare(against_baseline(groups(rows)), [on_test(ACCURACY)])[0].effect.p_different
    rows += arm("forward_forward", [v - 0.0001 for v in spread])
    both = compare(against_baseline(groups(rows)), [on_test(ACCURACY)])
    assert alone is not None and both[0].effect.p_different is not None
    assert both[0].effect.p_different > 1.5 * alone


def test_an_inconclusive_comparison_has_the_seeds_it_needs() -> None:
    rows = arm("backprop", [0.95, 0.9, 0.93]) + arm("mono_forward", [0.94, 0.91, 0.92])
    comparison = compare(against_baseline(groups(rows)), [on_test(ACCURACY)])[0]
    assert comparison.seeds_needed is not None and comparison.seeds_needed > 3
    assert comparison.text == f"INCONCLUSIVE: 3 seeds, about {comparison.seeds_needed} needed"
    one = compare(against_baseline(groups([row("backprop", 0), row("mono_forward", 0)])))[0]
    assert one.text == "INCONCLUSIVE: 1 seed, at least 5 needed"


CURVE = [[1, 0.5, 1.0], [2, 0.8, 2.0], [3, 0.6, 3.0], [4, 0.8, 4.0], [5, 0.9, 5.0], [10, 0.95, 9.0]]


@pytest.mark.parametrize(("target", "step"), [(0.4, 1), (0.6, 2), (0.7, 4), (0.8, 4), (0.9, 5)])
def test_a_target_is_reached_at_the_first_of_two_evaluations(target: float, step: int) -> None:
    found = to_target(row("backprop", 0, curve=CURVE, time__train_cpu_s=5.0), target)
    assert found == Reached(step, float(step), 5.0 * step / 10, 20_000_000 * step / 10, None)


def test_a_resumed_run_has_no_time_to_a_target() -> None:
    resumed = row("backprop", 0, curve=CURVE, segments=2)
    assert to_target(resumed, 0.8) == Reached(4, None, None, 8_000_000, None)
    assert target_cost(Arm("x", [resumed]), 0.8).train_s is None


def test_a_miss_is_no_number() -> None:
    # The last evaluation alone is not two in a row.
    assert to_target(row("backprop", 0, curve=CURVE), 0.95) is None
    assert to_target(row("backprop", 0, curve=[]), 0.1) is None


def test_the_cost_of_a_miss_is_infinite() -> None:
    def runs(*seconds: float | None) -> Arm:
        curves = [
            [[1, 0.5 if s is None else 0.9, s or 1.0], [2, 0.5 if s is None else 0.9, 99.0]] for s in seconds
        ]
        return Arm("x", [row("backprop", seed, curve=curve) for seed, curve in enumerate(curves)])

    found = target_cost(runs(3.0, None, 1.0, 2.0, None), 0.8)
    assert (found.hits, found.n, found.train_s) == (3, 5, 3.0)
    assert target_cost(runs(3.0, None, 1.0, None), 0.8).train_s is None
    assert target_cost(runs(None, None), 0.8).hits == 0


def test_joules_to_a_target_are_those_of_the_curve() -> None:
    metered = [[1, 0.9, 1.0, 30.0], [2, 0.9, 2.0, 60.0]]
    found = target_cost(Arm("x", [row("backprop", 0, curve=metered)]), 0.8)
    assert found.energy_j == 30.0
    # One row that was not metered leaves no median of joules, and does not count as zero.
    assert (
        target_cost(Arm("x", [row("backprop", 0, curve=metered), row("backprop", 1)]), 0.8).energy_j is None
    )


def test_units_are_those_of_the_smallest_figure() -> None:
    arms = [Arm("x", [row("backprop", 0, flops__train_total=3e13)]), Arm("y", [row("backprop", 0)])]
    assert readable(COSTS["train_flops"], arms[:1]).unit == "TFLOP"
    found = readable(COSTS["train_flops"], arms)
    assert (found.unit, 20_000_000 * found.scale) == ("MFLOP", pytest.approx(20))
    assert readable(COSTS["train_s"], arms) == COSTS["train_s"]
