"""Notes on single blocks in reports."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console
from scipy import stats

from bpfree.bench.arms import groups
from bpfree.bench.report.page import html
from bpfree.bench.table import show
from bpfree.bench.weak_blocks import weak_blocks
from tests.bench.rows import arm, row


def said(blocks: list[list[float | None]], chance: float | None = 0.1, **changes: Any) -> str:
    rows = [
        row("mono_forward", seed, metrics__blocks=own, metrics__chance=chance, **changes)
        for seed, own in enumerate(blocks)
    ]
    return weak_blocks(groups(rows)[0].arms[0])


def test_a_block_more_than_two_points_below_the_lower_one() -> None:
    assert said([[0.9, 0.885], [0.92, 0.885]]) == (
        "mono_forward: block 2 has 88.5 %, 2.5 points less than block 1 below it"
    )
    assert said([[0.9, 0.89], [0.92, 0.89]]) == ""


def test_an_interval_over_seeds_that_reaches_down_to_chance() -> None:
    seeds = [0.2, 0.9, 0.95]
    half = stats.sem(seeds) * stats.t.ppf(0.975, 2)
    text = said([[0.5, own] for own in seeds])
    assert (
        text == f"mono_forward: block 2 has 68.3 ± {100 * half:.1f} %, which reaches down to chance (10.0 %)"
    )
    # Of one seed there is no interval, and where the level is not known nothing is said.
    assert said([[0.05, 0.05]]) == ""
    assert said([[0.5, own] for own in seeds], chance=None) == ""


def test_blocks_without_values_are_skipped() -> None:
    assert said([[0.9, None], [0.9, 0.5]]) == ""
    assert said([[0.9], [0.9, 0.5]]) == ""
    assert said([[0.9, 0.1]], metrics__metric="mse", metrics__share=False) == ""


def test_the_page_and_the_terminal_show_the_note() -> None:
    rows = arm("backprop", [0.9, 0.9]) + arm("mono_forward", [0.9, 0.9], metrics__blocks=[0.9, 0.5])
    text = "mono_forward: block 2 has 50.0 %, 40.0 points less than block 1 below it"
    assert f"Single blocks, {text}." in html(rows)
    console = Console(width=200, record=True, file=io.StringIO())
    show(rows, console)
    assert f"single blocks, {text}" in console.export_text()
