"""Timing of steps at a small size: rotating order, ratios within a round, the interval of the median."""

import ctypes
import itertools
import random
import statistics
import subprocess
import sys
from typing import Any

import pytest
import torch

from benchmarks.claims import cheaper_step as claim


def test_all_arms_go_in_every_round_and_ratios_are_taken_within_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, turns = [0.0], []
    monkeypatch.setattr(claim.time, "perf_counter", lambda: clock[0])  # type: ignore[attr-defined]

    def arm(name: str, takes: float) -> Any:
        def step(x: Any, y: Any, number: int) -> None:
            turns.append((number, name))
            clock[0] += takes * (number + 1)

        return step

    asked = iter(range(0, 1000, 7))
    monkeypatch.setattr(claim, "page_faults", lambda: next(asked))
    arms = {"a": arm("a", 1.0), "b": arm("b", 2.0)}
    seconds, pages = claim.race(arms, torch.zeros(1), torch.zeros(1), 3)
    # Two rounds of warming up; a machine that gets slower round by round changes no ratio.
    assert seconds["a"] == [3.0, 4.0, 5.0] and seconds["b"] == [6.0, 8.0, 10.0]
    # Page faults between two steps and during warm-up are not counted.
    assert pages["a"] == pages["b"] == 7.0
    assert [name for number, name in turns if number in (2, 3)] == ["a", "b", "b", "a"]


def test_the_interval_covers_the_median_as_often_as_it_says() -> None:
    draw = random.Random(0)
    covered = 0
    for _ in range(1000):
        low, high = claim.interval([draw.expovariate(1.0) for _ in range(25)])
        covered += low <= 0.6931471805599453 <= high
    assert 930 <= covered <= 1000


@pytest.mark.parametrize(("kept", "counted"), [(False, False), (False, True), (True, True)])
def test_the_claim_is_measured_with_its_controls(
    kept: bool, counted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = itertools.count(step=int(counted))  # a system that does not count page faults returns 0
    monkeypatch.setattr(claim, "page_faults", lambda: next(asked))
    # Settings of malloc last as long as the process, so this test has its own.
    monkeypatch.setattr(claim, "keep_memory", lambda: kept)
    found = claim.measure(width=16, blocks=4, rounds={512: 3}, threads=1)
    assert list(found["batches"]) == ["512", "512, memory kept"][: 1 + kept]
    assert ("memory kept" in found["figure"]) == kept
    one = found["batches"]["512"]
    assert ("pages_a_step" in one) == counted
    assert not counted or set(one["pages_a_step"]) == set(one["seconds"])
    assert set(one["seconds"]) == {"analytic", "autograd", "backprop", "checkpointing"}
    for name, ratio in one["ratios"].items():
        ours, control = name.split(" / ")
        pairs = zip(one["seconds"][ours], one["seconds"][control], strict=True)
        assert ratio["median"] == statistics.median(a / b for a, b in pairs)
    medians = {key: ratio["median"] for key, ratio in one["ratios"].items()}
    fast = medians["analytic / backprop"] <= 0.75 and medians["analytic / checkpointing"] <= 0.60
    assert found["holds"] == fast


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_memory_that_is_kept_costs_no_page_again() -> None:
    code = """
import ctypes
import mmap
import torch
from benchmarks.claims import cheaper_step as claim
torch.set_num_threads(1)

def pages():
    before = claim.page_faults()
    parts = [torch.ones(2**21) for _ in range(16)]
    return claim.page_faults() - before

# Memory that malloc has no part in: a system that counts no page here counts none at all.
before, fresh = claim.page_faults(), mmap.mmap(-1, 2**24, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
fresh.write(bytes(2**24))
print(claim.page_faults() - before)
# What malloc keeps of its own accord hangs on how memory lies; told to, it gives every piece back.
assert ctypes.CDLL(None).mallopt(claim.MMAP_THRESHOLD, 2**20)
first = [pages() for _ in range(5)][-1]
assert claim.keep_memory()
print(first, [pages() for _ in range(5)][-1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    fresh, given_back, kept = map(int, done.stdout.split())
    if fresh == 0:
        pytest.skip("this system does not count the pages that it hands out")
    # 128 MiB against the 32 that were fresh, written and written from, in whatever pages they come.
    assert given_back >= 3 * fresh and kept <= 12


def test_all_arms_but_the_local_ones_take_the_same_steps() -> None:
    steps = claim.make(8, 4)
    x, y = torch.rand(6, 8), torch.arange(6)
    for step in steps.values():
        for number in range(3):
            step(x, y, number)
    nets = {name: list(step.__self__.net.parameters()) for name, step in steps.items()}  # type: ignore[attr-defined]
    for one, other in (("backprop", "checkpointing"), ("analytic", "autograd")):
        for ours, theirs in zip(nets[one], nets[other], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
