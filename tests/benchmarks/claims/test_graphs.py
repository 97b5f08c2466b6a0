"""The claim about large graphs, at a small size."""

from benchmarks.claims import graphs


def test_the_claim_is_measured_with_its_control() -> None:
    found = graphs.measure(nodes=400, epochs=2)
    # Backpropagation keeps the states of all nodes in three layers, a block those of its labelled tenth.
    assert found["saved_ratio"] > 5 and found["time_ratio"] > 0
    assert found["holds"] == (found["saved_ratio"] >= 10 and found["time_ratio"] >= 15)
    assert found["edges"] == 20 * 400 and found["labelled"] == 40
