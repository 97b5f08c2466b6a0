"""What docs/extend.md shows really runs."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

import bpfree
from bpfree.bench.__main__ import main
from bpfree.trainers import TRAINERS

PAGE = Path(__file__).parents[2] / "docs" / "extend.md"


def fenced(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_rule_is_short_keeps_the_laws_and_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rule, laws, training = fenced("python")[:3]
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


def test_the_trainer_keeps_the_laws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registered: None
) -> None:
    definition, laws = fenced("python")[3:]
    (tmp_path / "smoothed.py").write_text(definition)
    (tmp_path / "check.py").write_text(laws)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("smoothed.py")
    runpy.run_path("check.py")
    assert bpfree.get_trainer("smoothed").__doc__ == "Mono-Forward with smoothed labels."
    # Running the file again, as a plugin is in every process, is no clash.
    runpy.run_path("smoothed.py")


def test_a_registered_trainer_checks_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registered: None
) -> None:
    (tmp_path / "smoothed.py").write_text(fenced("python")[3])
    monkeypatch.chdir(tmp_path)
    runpy.run_path("smoothed.py")
    for settings, message in (({"smoothing": "much"}, "smoothing"), ({"smooth": 0.1}, "smooth: unknown key")):
        with pytest.raises(bpfree.BadValue, match=message):
            bpfree.get_trainer("smoothed")(bpfree.nn.mlp([12, 16, 3]), **settings)


def test_the_config_benches_the_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], registered: None
) -> None:
    (tmp_path / "smoothed.py").write_text(fenced("python")[3])
    (tmp_path / "smoothed.yaml").write_text(fenced("yaml")[1])
    monkeypatch.chdir(tmp_path)
    arguments = ["--seeds", "1", "--set", "fit.epochs=2", "--out", "results"]
    assert main(["run", "smoothed.yaml", *arguments]) == 0
    rows = [json.loads(line) for line in Path("results/results.jsonl").read_text().splitlines()]
    found = [(row["trainer"], row["status"], row["config"]["trainer"].get("smoothing")) for row in rows]
    assert found == [("smoothed", "ok", 0.2), ("mono_forward", "ok", None)]


@pytest.fixture
def registered() -> Iterator[None]:
    """What a test registers is forgotten behind it."""
    before = dict(TRAINERS)
    yield
    TRAINERS.clear()
    TRAINERS.update(before)
