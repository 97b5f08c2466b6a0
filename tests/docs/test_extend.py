"""What docs/extend.md shows really runs."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

import bpfree
from bpfree.bench.__main__ import main

PAGE = Path(__file__).parents[2] / "docs" / "extend.md"


def fenced(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_rule_is_short_keeps_the_laws_and_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rule, laws, training = fenced("python")
    assert len(rule.splitlines()) < 40
    (tmp_path / "prototypes.py").write_text(rule)
    (tmp_path / "check.py").write_text(laws)
    (tmp_path / "training.py").write_text("import bpfree\n" + training)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("prototypes.py")
    runpy.run_path("check.py")
    names = runpy.run_path("training.py")
    chance = 1 / 10
    assert names["trainer"].evaluate(names["test"])["accuracy"] > 5 * chance
    assert not isinstance(names["trainer"].cascade.losses[0], bpfree.losses.LocalCrossEntropy)


def test_the_config_benches_the_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prototypes.py").write_text(fenced("python")[0])
    (tmp_path / "prototypes.yaml").write_text(fenced("yaml")[0])
    monkeypatch.chdir(tmp_path)
    arguments = ["--seeds", "2", "--set", "fit.epochs=3", "--out", "results"]
    assert main(["run", "prototypes.yaml", *arguments]) == 0
    assert "random_features" in capsys.readouterr().out
    rows = [json.loads(line) for line in Path("results/results.jsonl").read_text().splitlines()]
    assert [(row["arm"], row["status"], row["locality"]) for row in rows if row["seed"] == 0] == [
        ("local", "ok", "L2"),
        ("backprop", "ok", "L0"),
        ("random_features", "ok", "L2"),
    ]
