"""The claim about features on disk, with a cache that is small and a limit that still does not allow it."""

from pathlib import Path

from benchmarks.claims import larger_than_memory as claim


def test_on_disk_it_trains_where_memory_does_not_allow_it(tmp_path: Path) -> None:
    # What the interpreter and the libraries take of the limit differs from machine to machine.
    base = claim.child(64, 128, 64, None, None)["data_bytes"] // claim.MIB
    found = claim.measure(base + 64, times=104 / (base + 64), width=128, folder=str(tmp_path))
    memory, disk, refused = found["runs"].values()
    assert memory["weights"] == disk["weights"] and len(disk["weights"]) == 6
    assert disk["data_bytes"] <= found["limit_bytes"]
    assert "failed" in refused
    # The cache is not the four times that are claimed.
    assert not found["holds"]
    assert not list(tmp_path.iterdir())
