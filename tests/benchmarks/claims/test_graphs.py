"""The claim about large graphs, at a small size."""

import pytest

from benchmarks.claims import graphs
from benchmarks.profiles import graph_scale


def test_the_claim_is_measured_with_its_control() -> None:
    with pytest.warns(UserWarning, match="no training sample has the class"):
        found = graphs.measure(nodes=400, epochs=2)
    # Backpropagation keeps the states of all nodes in three layers, a block those of its labelled tenth.
    assert found["saved_ratio"] > 5 and found["time_ratio"] > 0
    assert found["holds"] == graph_scale.holds(found)
    assert found["edges"] == 20 * 400 and found["labelled"] == 40


def test_the_leanest_backpropagation_decides() -> None:
    enough = {"time_ratio": 20.0, "saved_ratio": 12.0, "lean_time_ratio": 15.0, "lean_saved_ratio": 10.0}
    assert graph_scale.holds(enough)
    assert not graph_scale.holds(enough | {"lean_time_ratio": 14.9})
    assert not graph_scale.holds(enough | {"lean_saved_ratio": 9.9})


@pytest.mark.parametrize(
    ("once", "epoch", "asked"), [(1.0, 0.5, [1, 5]), (1.0, 0.1, [1, 5, 17]), (9.0, 0.01, [1, 5, 17, 65, 100])]
)
def test_epochs_are_timed_at_least_as_long_as_what_is_done_once(
    once: float, epoch: float, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def run(kind: str, data: object, depth: int, epochs: int) -> tuple[None, float]:
        found.append(epochs)
        return None, once + epochs * epoch

    monkeypatch.setattr(graph_scale, "run", run)
    seconds = graph_scale.extrapolated("plain", None, 1, 4)  # type: ignore[arg-type]
    assert seconds == pytest.approx(once + 100 * epoch)
    assert found == asked
