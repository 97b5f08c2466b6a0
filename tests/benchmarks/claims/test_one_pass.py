"""The closed-form claim on small images, and that its measure of distance can fail."""

import pytest
import torch

from benchmarks.claims import one_pass as claim


def test_merging_and_forgetting_on_digits() -> None:
    found = claim.measure("digits", channels=(4, 8), pool=(2, 2), repeats=1)
    assert max(found["merged"].values()) <= 1e-10 and len(found["merged"]) == 6
    assert found["forgotten"] <= 1e-8
    assert found["accuracy"] > 0.5 and found["cpu_seconds"] > 0
    assert found["refit_over_forget"] == found["refit_seconds"][0] / found["forget_seconds"][0]


def test_a_sample_too_many_or_too_few_is_seen() -> None:
    x, y = torch.rand(500, 6, dtype=torch.float64), torch.arange(500) % 10
    whole = claim.fitted((x, y)).solve(claim.LAM)
    assert claim.gap(claim.fitted((x[:-1], y[:-1])).solve(claim.LAM), whole) > 1e-6
    assert claim.gap(claim.fitted((x[:300], y[:300]), (x[300:], y[300:])).solve(claim.LAM), whole) < 1e-12
    assert sum(len(own) for _, own in claim.shards((x, y), 7, seed=0)) == 500


def test_without_the_data_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("BPFREE_DATA", str(tmp_path))
    assert "MNIST is missing" in str(claim.possible())
