"""Mutations of the meters, with faults that published measurements have had: the tests must fail.

A mutation replaces a text in the source of one function, which must occur exactly once, and runs tests of
this folder. A mutation that no test detects is a gap in the tests.
"""

from __future__ import annotations
import __future__

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bpfree import BpfreeError
from bpfree.meters import EnergyMeter, Windows, emissions, rapl
from bpfree.meters import sampling as sampling_module
from bpfree.meters.nvml import NvmlDevice
from bpfree.meters.sampling import PowerIntegral
from bpfree.meters.sources import CPU, GPU
from tests.meters import test_emissions, test_energy, test_rapl
from tests.meters.world import World

Check = Callable[..., None]


@dataclass(frozen=True)
class Mutation:
    """A fault: ``old`` in ``function`` becomes ``new``; ``checks`` are the tests that must fail."""

    name: str
    function: Any
    old: str
    new: str
    checks: tuple[Check, ...]


JOULES = test_energy.test_joules_are_the_integral_of_the_power_over_the_window
NET = test_energy.test_net_is_gross_less_the_idle_draw_before_and_after_by_the_same_counter
QUEUED = test_energy.test_the_device_is_synchronized_at_both_ends
IDENTITY = test_energy.test_the_device_is_found_by_its_identity_and_not_by_its_index
SAMPLED = test_energy.test_power_is_sampled_while_it_changes
TRAPEZOIDS = test_energy.test_a_ramp_is_integrated_by_trapezoids
STUCK = test_energy.test_a_sensor_that_does_not_change_taints
SHORT = test_energy.test_a_short_window_has_a_reason_and_no_figure
PIECES = test_energy.test_a_window_in_pieces_needs_more_ticks
WENT_BACK = test_energy.test_a_decreasing_counter_raises_after_the_block
REPEATED = test_energy.test_short_work_is_repeated_in_one_window_and_divided
NESTED = test_energy.test_inner_windows_are_not_counted_in_the_outer_one
DISAGREE = partial(
    test_energy.test_a_difference_of_counter_and_integral_warns_and_taints, factor=1.06, tainted=1, warned=0
)
TICK = partial(test_energy.test_the_tick_is_measured, tick=0.02)
DEAD = test_energy.test_a_counter_that_does_not_change_raises
PACKAGES = test_rapl.test_packages_and_memory_are_counted_but_not_overlapping_domains
WRAP = test_rapl.test_a_counter_may_wrap_around_in_a_window
CPU_NET = test_rapl.test_net_subtracts_the_idle_energy
SET_BACK = test_rapl.test_a_counter_that_was_reset_raises
PUE = test_emissions.test_a_kilowatt_hour_costs_its_factor_times_the_pue_once
KWH = test_emissions.test_kilowatt_hours_become_joules

SUBTRACTED = " - sum(idle.values()) / 2 * seconds"

MUTATIONS = [
    Mutation(
        "the counter's millijoules taken for joules",
        NvmlDevice.energy_j,
        "* MILLI",
        "* 1",
        (JOULES, REPEATED),
    ),
    Mutation(
        "the sensor's milliwatts taken for watts", NvmlDevice._instant_w, "* MILLI", "* 1", (JOULES, SAMPLED)
    ),
    Mutation(
        "RAPL's microjoules taken for millijoules",
        rapl.Domain.joules,
        "+= grown * MICRO",
        "+= grown * 1e-3",
        (PACKAGES, CPU_NET),
    ),
    Mutation("joules taken for watt-hours", emissions.carbon, "/ JOULES_PER_KWH", "/ 1000", (PUE,)),
    Mutation("kilowatt-hours taken for joules", emissions._joules, "* JOULES_PER_KWH", "* 1", (KWH,)),
    Mutation("no synchronization", Windows._update, "synchronize(self._device)", "pass", (QUEUED, JOULES)),
    Mutation("idling not subtracted from the GPU's", EnergyMeter._reading, SUBTRACTED, "", (NET, REPEATED)),
    Mutation("idling not subtracted from the CPU's", EnergyMeter._reading, SUBTRACTED, "", (CPU_NET,)),
    Mutation(
        "idling of one end only", EnergyMeter._reading, "sum(idle.values()) / 2", "idle['before']", (NET,)
    ),
    Mutation(
        "a counter that wraps around not followed",
        rapl.Domain.joules,
        "grown += self._range",
        "pass",
        (WRAP,),
    ),
    Mutation(
        "a counter that wraps around ignored",
        rapl.Domain.joules,
        "grown += self._range",
        "grown = 0",
        (WRAP,),
    ),
    Mutation("a reset counter not detected", rapl.Domain.joules, "> IMPOSSIBLE_W", "> 1e12", (SET_BACK,)),
    Mutation("a decreasing counter not detected", GPU.read, "joules < self._last", "False", (WENT_BACK,)),
    Mutation(
        "an index for an identity",
        NvmlDevice._find,
        'HandleByUUID(f"GPU-{uuid}")',
        "HandleByIndex(device.index)",
        (IDENTITY, JOULES),
    ),
    Mutation(
        "power held at the first sample",
        PowerIntegral.sample,
        "= self._watts(), ",
        "= (self.watts[0] if self.watts else self._watts()), ",
        (SAMPLED, JOULES),
    ),
    Mutation(
        "power held at the first sample, and no check of it",
        PowerIntegral.stuck,
        ">= enough",
        "< 0",
        (STUCK,),
    ),
    Mutation(
        "half of the samples lost",
        PowerIntegral.sample,
        "if self.times:",
        "if self.times and len(self.times) % 2:",
        (JOULES, SAMPLED),
    ),
    Mutation(
        "rectangles for trapezoids",
        PowerIntegral.sample,
        "(watts + self.watts[-1]) / 2",
        "watts",
        (TRAPEZOIDS,),
    ),
    Mutation(
        "differences of one sign only",
        EnergyMeter._reading,
        "abs(ratio - 1) > TAINT",
        "ratio - 1 > TAINT",
        (DISAGREE,),
    ),
    Mutation("short windows accepted", EnergyMeter.reading, "seconds < needed", "False", (SHORT, PIECES)),
    Mutation("pieces ignored", EnergyMeter._needed_s, "math.sqrt(total.get(PIECES, 1))", "1", (PIECES,)),
    Mutation(
        "the tick assumed",
        sampling_module.measure_tick,
        "return (updates[-1] - updates[0]) / (len(updates) - 1)",
        "return 0.1",
        (TICK,),
    ),
    Mutation(
        "a constant counter accepted",
        sampling_module.measure_tick,
        "if len(updates) < 3:",
        "if len(updates) < 3:\n        return 0.1\n    if len(updates) < 3:",
        (DEAD,),
    ),
    Mutation(
        "repeats not divided out",
        EnergyMeter._reading,
        "gross_j=gross / repeats",
        "gross_j=gross",
        (REPEATED,),
    ),
    Mutation(
        "inner windows counted in the outer", Windows._update, "self._open[-1]", "self._open[0]", (NESTED,)
    ),
    Mutation("the PUE applied twice", emissions.carbon, "/ 1000 * pue", "/ 1000 * pue * pue", (PUE,)),
    Mutation(
        "parts of a package counted again",
        rapl.domains,
        '("package", "dram")',
        '("package", "dram", "core")',
        (PACKAGES,),
    ),
    Mutation("only the package counted", CPU.read, '"joules": sum(grown)', '"joules": grown[0]', (PACKAGES,)),
]


def mutate(patch: pytest.MonkeyPatch, mutation: Mutation) -> None:
    """Replace the code of the function; ``patch`` restores it."""
    source = textwrap.dedent(inspect.getsource(mutation.function))
    assert source.count(mutation.old) == 1, f"{mutation.old!r} occurs {source.count(mutation.old)} times"
    flags = __future__.annotations.compiler_flag
    changed: dict[str, Any] = {}
    code = compile(source.replace(mutation.old, mutation.new), "<mutation>", "exec", flags)
    exec(code, dict(mutation.function.__globals__), changed)
    patch.setattr(mutation.function, "__code__", changed[mutation.function.__name__].__code__)


def run(check: Check, tmp_path: Path) -> None:
    """Run a test with new simulated devices."""
    tmp_path.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        fixtures = {
            "tmp_path": lambda: tmp_path,
            "monkeypatch": lambda: patch,
            "world": lambda: World(patch, tmp_path),
        }
        needed = [name for name in inspect.signature(check).parameters if name in fixtures]
        check(**{name: fixtures[name]() for name in needed})


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_mutation_is_detected(mutation: Mutation, tmp_path: Path) -> None:
    for number, check in enumerate(mutation.checks):
        run(check, tmp_path / f"sound {number}")
        with pytest.MonkeyPatch.context() as patch:
            mutate(patch, mutation)
            with pytest.raises((AssertionError, pytest.fail.Exception, BpfreeError)):
                run(check, tmp_path / f"faulty {number}")
