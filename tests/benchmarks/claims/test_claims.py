"""Claims are listed, measured and recorded, and distinguished from those that were not measured."""

import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import _record, claims
from benchmarks.claims import __main__ as command


@pytest.mark.parametrize("name", claims.names())
def test_every_claim_says_what_it_is_and_can_be_measured_small(name: str) -> None:
    claim = claims.load(name)
    assert claim.TITLE and claim.HOLDS_IF and claim.__doc__
    parameters = inspect.signature(claim.measure).parameters.values()
    assert all(p.default is not inspect.Parameter.empty for p in parameters)
    assert claims.why_not(claim) is None or isinstance(claims.why_not(claim), str)


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """A single claim in place of all, and an empty folder of results."""
    found: dict[str, Any] = {"holds": True, "figure": "2.0x", "threads": 1, "seconds": [1.0, 2.0]}
    claim = SimpleNamespace(TITLE="fast", HOLDS_IF="2x", measure=lambda: found, found=found)
    monkeypatch.setattr(claims, "names", lambda: ["one"])
    monkeypatch.setattr(claims, "load", lambda name: claim)
    monkeypatch.setattr(_record, "RESULTS", tmp_path)
    return claim


@pytest.mark.parametrize(("holds", "code", "verdict"), [(True, 0, "holds"), (False, 3, "does not hold")])
def test_a_measured_claim_is_written_with_its_verdict(
    one: SimpleNamespace, tmp_path: Path, holds: bool, code: int, verdict: str
) -> None:
    one.found["holds"] = holds
    assert "not measured yet" in command.table({})
    assert claims.run("one") == code
    written = json.loads((tmp_path / "claims/one.json").read_text())
    assert written["passed"] is holds and written["seconds"] == [1.0, 2.0] and written["env"]["threads"] == 1
    one.TITLE = "another title"
    line = command.table({}).splitlines()[-1]
    assert line.startswith("| fast | 2x | 2.0x |") and verdict in line and "another" not in line


def test_what_this_machine_cannot_measure_leaves_an_earlier_result_alone(
    one: SimpleNamespace, tmp_path: Path
) -> None:
    one.possible = lambda: "needs a GPU"
    assert claims.run("one") == claims.CANNOT
    assert not (tmp_path / "claims").exists()
    assert "cannot be measured here: needs a GPU" in command.table({})
    del one.possible
    claims.run("one")
    one.possible = lambda: "needs a GPU"
    assert claims.run("one") == claims.CANNOT
    assert "holds" in command.table({}).splitlines()[-1]


def test_a_claim_whose_process_fails_is_not_shown_by_an_older_file(
    one: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    claims.run("one")
    ended = SimpleNamespace(returncode=1)
    monkeypatch.setattr(command.subprocess, "run", lambda *_, **__: ended)  # type: ignore[attr-defined]
    assert command.main([]) == 1
    assert "measuring it failed" in capsys.readouterr().out.splitlines()[-1]
    for code, expected in ((claims.HOLDS, 0), (claims.DOES_NOT, 1), (claims.CANNOT, 0)):
        ended.returncode = code
        assert command.main(["one"]) == expected


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["nonsense"])
    assert "unknown: nonsense" in capsys.readouterr().err
