"""Write a script's figures with machine and versions to ``benchmarks/results``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from bpfree.bench.environment import environment, git

RESULTS = Path(__file__).parent / "results"


def record(name: str, figures: dict[str, Any], passed: bool) -> int:
    """Print the figures and write ``results/<name>.json``; returns the exit code, 0 if ``passed``."""
    env = environment(torch.device("cpu"), torch.get_num_threads())
    content = {"name": name, "passed": passed, **figures, "env": env, "git": git()}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    print(json.dumps({"passed": passed, **figures}, indent=1))
    return 0 if passed else 1
