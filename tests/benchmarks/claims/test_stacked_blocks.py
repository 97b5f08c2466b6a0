"""The claim about stacked blocks at a small size: all arms are raced, and the ratio gives the verdict."""

from benchmarks.claims import stacked_blocks as claim


def test_the_verdict_is_that_of_the_median_ratio_within_a_round() -> None:
    found = claim.measure(width=8, blocks=4, batch=4, rounds=5, burst=2)
    assert set(found["ms_per_step"]) == set(claim.ARMS)
    ratio = found["ratios"]["stacked"]
    assert ratio["interval"][0] <= ratio["ratio"] <= ratio["interval"][1]
    assert found["holds"] == (ratio["ratio"] >= claim.LIMIT)
