"""The profile of a step at a small size."""

from benchmarks.profiles import step_profile


def test_the_kinds_of_work_add_up_to_the_profiled_step() -> None:
    found = step_profile.measure(list(step_profile.ARMS), 64, 3, width=64, blocks=3)
    assert set(found) == set(step_profile.ARMS)
    for arm in found.values():
        assert arm["step_s"] > 0
        assert {"products", "optimizer", "Python and dispatch"} <= set(arm["profiled_s"])
        assert all(seconds >= 0 for seconds in arm["profiled_s"].values())
