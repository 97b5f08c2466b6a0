"""Write a script's figures with machine and versions to ``benchmarks/results``."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bpfree.bench.environment import environment, git

RESULTS = Path(__file__).parent / "results"


def write(name: str, figures: dict[str, Any], passed: bool, changed: Mapping[str, Any] | None = None) -> Path:
    """Write ``results/<name>.json``, or another file if the arguments are not those of the published run.

    Args:
        name: Name of the script.
        figures: The results; ``threads`` is the number of threads that they were computed with.
        passed: Whether the results are as claimed.
        changed: The arguments that differ from the published ones, see `changes`.

    Returns:
        The file. With changed arguments its name contains ``--``, and git ignores it.
    """
    env = environment(torch.device("cpu"), figures.get("threads", torch.get_num_threads()))
    content = {"name": name, "passed": passed, **figures, "env": env, "git": git()}
    if changed:
        content["arguments"] = dict(changed)
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    parts = [re.sub(r"[^A-Za-z0-9_.-]+", "_", f"--{key}-{value}") for key, value in (changed or {}).items()]
    path = RESULTS / f"{name}{''.join(parts)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def changes(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments that differ from their defaults, which are those of the published run."""
    return {key: value for key, value in vars(arguments).items() if value != parser.get_default(key)}


def record(name: str, figures: dict[str, Any], passed: bool, changed: Mapping[str, Any] | None = None) -> int:
    """Print the figures and `write` them; returns the exit code, 0 if ``passed``."""
    path = write(name, figures, passed, changed)
    print(json.dumps({"passed": passed, **figures}, indent=1))
    if changed:
        print(f"written to {path.name}: the arguments are not those of the published run")
    return 0 if passed else 1
