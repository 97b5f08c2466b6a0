"""The claim about stacked blocks at a small size, and its verdict on times that are known."""

import pytest

from benchmarks.claims import stacked_blocks as claim


def test_all_arms_are_raced() -> None:
    found = claim.measure(width=8, blocks=4, batch=4, rounds=5, burst=2)
    assert set(found["ms_per_step"]) == set(claim.ARMS)
    assert min(found["ms_per_step"].values()) > 0


@pytest.mark.parametrize(("slow", "holds"), [(3.0, True), (1.5, False)])
def test_the_verdict_is_that_of_steps_per_second(
    slow: float, holds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"stacked": [1.0] * 9, "analytic": [2.0] * 9, "autograd": [4.0] * 9, "backprop": [slow] * 9}
    monkeypatch.setattr(claim, "race", lambda *_: (seconds, {}))
    found = claim.measure(width=8, blocks=4, batch=4, burst=10)
    assert found["ratios"]["stacked"]["ratio"] == slow
    assert found["ratios"]["analytic"]["ratio"] == slow / 2
    assert found["ms_per_step"]["stacked"] == 100.0
    assert found["holds"] == holds
