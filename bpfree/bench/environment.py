"""The environment of a result: versions, machine, source."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

from bpfree.bench.files import Mapped

PACKAGE = Path(__file__).resolve().parents[1]


@cache
def source_hash() -> str:
    """A hash of the package's Python files, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(str(path.relative_to(PACKAGE)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def git() -> Mapped:
    """Commit of the checkout that contains the package, and whether it has changes; empty without one."""

    def run(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(PACKAGE), *words], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {
            "commit": run("rev-parse", "HEAD"),
            "dirty": bool(run("status", "--porcelain", "--", str(PACKAGE))),
        }
    except (OSError, subprocess.SubprocessError):
        return {}


def environment(device: torch.device, threads: int) -> Mapped:
    """Versions and machine; the GPU only where one is used."""
    result: Mapped = {
        "bpfree": version("bpfree"),
        "source": source_hash(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "threads": threads,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    if device.type == "cuda":
        result |= {"gpu_name": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return result


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )
