"""What the README shows first really runs, and leaves what it says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


def test_the_first_example_trains_and_leaves_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[0]
    # Fewer epochs; far fewer than 30 seconds either way.
    (tmp_path / "example.py").write_text(example.replace("epochs=20", "epochs=4"))
    monkeypatch.chdir(tmp_path)
    found = runpy.run_path("example.py")
    assert found["trainer"].evaluate(found["test"])["accuracy"] > 0.8
    written = Path("run.safetensors").read_bytes()
    # The same command again finds the run finished.
    again = runpy.run_path("example.py")
    assert Path("run.safetensors").read_bytes() == written
    assert again["trainer"].evaluate(again["test"]) == found["trainer"].evaluate(found["test"])
