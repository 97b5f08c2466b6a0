"""Modeled hardware time and energy: sums by hand, of stated values alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bpfree.bench.profile import Profile, modeled

DEVICE: Any = SimpleNamespace(n_in=20, n_out=10)


def test_every_part_is_the_sum_by_hand() -> None:
    profile = Profile(pass_s=0.5, pass_j=2.0, flop_j=1e-9, bit_j=1e-3, drive_bits=8, answer_bits=12)
    passes = {"train": 90, "calibration": 10, "eval": 1000, "other": 7}
    found = modeled(profile, [None, DEVICE, DEVICE], passes, 3e9)
    assert found["time_s"] == 50.0
    assert found["parts"] == pytest.approx(
        {"passes_j": 200.0, "flops_j": 3.0, "converters_j": 100 * (20 * 8 + 10 * 12) * 1e-3}
    )
    assert found["energy_j"] == pytest.approx(200 + 3 + 28)
    assert "not measured" in found["basis"]


def test_the_published_acoustic_recipe_takes_16_hours() -> None:
    found = modeled(Profile(pass_s=0.35), [DEVICE], {"train": 164_800}, 0.0)
    assert found["time_s"] / 3600 == pytest.approx(16.0, abs=0.05)
    assert found.keys() == {"basis", "time_s"}


def test_without_a_device_only_the_computer_counts() -> None:
    profile = Profile(pass_j=2.0, flop_j=1e-9, bit_j=1e-3, drive_bits=8, answer_bits=8)
    found = modeled(profile, [None, None], {}, 3e9)
    assert found["parts"] == {"passes_j": 0.0, "flops_j": 3.0, "converters_j": 0.0}
    assert "time_s" not in found


def test_missing_settings_of_a_profile_are_named() -> None:
    assert Profile(bit_j=1e-12).missing() == ["drive_bits", "answer_bits"]
    assert Profile(pass_s=1.0).missing() == []
