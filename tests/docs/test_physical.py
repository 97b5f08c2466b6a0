"""The examples of docs/physical.md run, in separate processes."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "physical.md"


def fenced(holding: str) -> str:
    """The one Python example with ``holding`` in it."""
    found = [
        code for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if holding in code
    ]
    assert len(found) == 1
    return str(found[0])


def test_the_device_in_another_process_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "box.py").write_text(fenced("class Box"))
    (tmp_path / "use.py").write_text(fenced("ProcessSystem"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(PAGE.parents[1]))
    names = runpy.run_path("use.py")
    counts = names["counts"]
    # 256 probes, 32 of them four more times and once more for the drift; 100 rows of training.
    assert counts["passes"] == {"train": 100, "eval": 0, "calibration": 256 + 5 * 32, "other": 0}
    assert counts["retries_used"] == 1, "the third call drops a frame"
    assert names["drift"]["correlation"] > 0.99
    assert 0.02 < names["report"].nonlinearity_index < 0.5
    np.testing.assert_allclose(names["report"].noise, 0.01, rtol=0.4)
    assert names["outputs"].shape == (100, 10) and abs(names["outputs"].std() - 1) < 0.2


def test_the_record_is_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "record.py").write_text(fenced("Recorder"))
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path("record.py")
    np.testing.assert_array_equal(names["first"], names["again"])
