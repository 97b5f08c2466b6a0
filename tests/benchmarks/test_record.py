"""Runs with other arguments leave the published results alone."""

from __future__ import annotations

import argparse
import ast
import json
from pathlib import Path

import pytest

from benchmarks import _record
from benchmarks.claims import gpu_cifar10, strong_nets

FOLDER = Path(_record.__file__).parent
SCRIPTS = sorted(path for path in FOLDER.rglob("*.py") if "return record(" in path.read_text())


def test_the_scripts_of_every_group_are_checked() -> None:
    assert {path.parent.name for path in SCRIPTS} == {"claims", "profiles", "robustness"}


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser()
    found.add_argument("--kills", type=int, default=20)
    found.add_argument("--label", default="now")
    return found


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ([], "kill_rows.json"),
        (["--kills", "20"], "kill_rows.json"),
        (["--kills", "3"], "kill_rows--kills-3.json"),
        (["--kills", "3", "--label", "a/b"], "kill_rows--kills-3--label-a_b.json"),
    ],
)
def test_other_arguments_have_a_file_of_their_own(
    given: list[str],
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(_record, "RESULTS", tmp_path)
    changed = _record.changes(parser(), parser().parse_args(given))
    assert _record.record("kill_rows", {"rows": 1}, True, changed) == 0
    (path,) = tmp_path.iterdir()
    assert path.name == name
    assert json.loads(path.read_text()).get("arguments", {}) == changed
    assert ("not those of the published run" in capsys.readouterr().out) == bool(changed)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_with_arguments_says_which_were_changed(script: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.Call)]
    named = [(ast.unparse(call.func), len(call.args)) for call in calls]
    with_arguments = any(name.endswith("add_argument") for name, _ in named)
    assert {count for name, count in named if name == "record"} == {4 if with_arguments else 3}


@pytest.mark.parametrize("claim", [gpu_cifar10, strong_nets])
def test_rows_of_another_experiment_need_a_folder(claim: object) -> None:
    with pytest.raises(ValueError, match="its own folder for rows"):
        claim.measure({"name": "small"})  # type: ignore[attr-defined]
