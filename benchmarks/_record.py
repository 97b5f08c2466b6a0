"""Write a script's figures with machine and versions to ``benchmarks/results``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from bpfree.bench.environment import environment, git

RESULTS = Path(__file__).parent / "results"


def write(name: str, figures: dict[str, Any], passed: bool) -> None:
    """Write ``results/<name>.json``; ``figures`` may name the ``threads`` that it was computed with."""
    env = environment(torch.device("cpu"), figures.get("threads", torch.get_num_threads()))
    content = {"name": name, "passed": passed, **figures, "env": env, "git": git()}
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def record(name: str, figures: dict[str, Any], passed: bool) -> int:
    """Print the figures and `write` them; returns the exit code, 0 if ``passed``."""
    write(name, figures, passed)
    print(json.dumps({"passed": passed, **figures}, indent=1))
    return 0 if passed else 1
