"""Compares two revisions bit for bit: losses, weights and predictions of every trainer.

``python -m benchmarks.robustness.same_bits OLD NEW [--only PART] [--out FILE]``; OLD and NEW are revisions of
this repository, or folders with a checkout. A revision is checked out into a temporary work tree. Both are
trained on this machine, one after the other. The exit code is 0 if all results are equal.

The runs use the public interface alone; names that differ between revisions are listed in ``_runs.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

RUNS = Path(__file__).with_name("_runs.py")
ROOT = Path(__file__).parents[2]

Outcome = dict[str, Any]


@contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """A folder with the source of ``revision``: the folder of that name, or a temporary work tree."""
    if Path(revision, "bpfree").is_dir():
        yield Path(revision).resolve()
        return
    with tempfile.TemporaryDirectory() as parent:
        tree = Path(parent, "tree")
        _git("worktree", "add", "--quiet", "--detach", str(tree), revision)
        try:
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _git(*words: str) -> None:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"git {' '.join(words)}: {done.stderr.strip()}")


def collect(tree: Path, pattern: str = "", workers: int = 2) -> dict[str, Outcome]:
    """Train the runs whose names contain ``pattern`` with the source in ``tree``; returns outcomes by name.

    With ``workers`` = 1 the runs that need several workers are skipped.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "ignore", str(RUNS), folder, pattern]
        env = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        env.pop("RANK", None)
        _run([command], [env], tree)
        if workers > 1:
            with socket.socket() as listening:
                listening.bind(("127.0.0.1", 0))
                port = str(listening.getsockname()[1])
            group = {"WORLD_SIZE": str(workers), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            _run([command] * workers, [env | group | {"RANK": str(k)} for k in range(workers)], tree)
        rows = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]
    return {row.pop("name"): row for row in rows}


def _run(commands: Sequence[Sequence[str]], environments: Sequence[dict[str, str]], tree: Path) -> None:
    processes = [
        subprocess.Popen(command, env=env, cwd=tree, stdout=subprocess.DEVNULL)
        for command, env in zip(commands, environments, strict=True)
    ]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit(f"{tree}: training ended with exit codes {codes}")


def difference(old: Outcome, new: Outcome) -> str:
    """The differences between two outcomes of one run as text, empty if there are none.

    Weights are compared as a set, so that a renamed parameter is the same parameter.
    """
    if "crashed" in old or "crashed" in new:
        words = [
            f"{side} crashed: {o['message']}" for side, o in (("old", old), ("new", new)) if "crashed" in o
        ]
        return "; ".join(words)
    if ("refused" in old) != ("refused" in new):
        side, refusing = ("old", old) if "refused" in old else ("new", new)
        return f"only {side} refuses: {refusing['message']}"
    if "refused" in old:
        return ""
    differing = []
    if old["losses"] != new["losses"]:
        epochs = zip(old["losses"], new["losses"], strict=False)
        first = next(
            (k for k, (a, b) in enumerate(epochs) if a != b), min(map(len, (old["losses"], new["losses"])))
        )
        differing.append(f"losses from epoch {first + 1} on")
    before, after = sorted(old["weights"].values()), sorted(new["weights"].values())
    if before != after:
        changed = [name for name, value in new["weights"].items() if value not in before]
        differing.append(
            f"{len(changed)} of {len(after)} weights ({', '.join(changed[:2])}), {len(before)} before"
        )
    differing += [key for key in ("predictions", "accuracy") if old[key] != new[key]]
    return ", ".join(differing)


def compare(old: dict[str, Outcome], new: dict[str, Outcome]) -> dict[str, str]:
    """The differences by name of the run, for all runs of either revision."""
    differing = {}
    for name in dict.fromkeys([*old, *new]):
        if name not in old or name not in new:
            differing[name] = f"only in {'old' if name in old else 'new'}"
        elif words := difference(old[name], new[name]):
            differing[name] = words
    return differing


def show(differing: dict[str, str], runs: Sequence[str], refused: int) -> None:
    """Print the differences, and the number of runs that are equal."""
    console = Console()
    if differing:
        table = Table("run", "what differs")
        for name, words in differing.items():
            table.add_row(Text(name), Text(words))
        console.print(table)
    console.print(
        Text(f"{len(runs) - len(differing)} of {len(runs)} runs are equal; {refused} are refused by both")
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.robustness.same_bits", description=__doc__)
    parser.add_argument("old", help="revision or folder")
    parser.add_argument("new", help="revision or folder")
    parser.add_argument("--only", default="", metavar="PART", help="only the runs whose names contain PART")
    parser.add_argument("--workers", type=int, default=2, help="number for the pipelined run; 1: skip it")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the outcomes of both as JSON")
    given = parser.parse_args(arguments)
    outcomes = []
    for revision in (given.old, given.new):
        with checkout(revision) as tree:
            outcomes.append(collect(tree, given.only, given.workers))
    old, new = outcomes
    differing, names = compare(old, new), list(dict.fromkeys([*old, *new]))
    if not names:
        raise SystemExit(f"no run's name contains {given.only!r}")
    show(
        differing,
        names,
        sum("refused" in old.get(name, {}) and "refused" in new.get(name, {}) for name in names),
    )
    if given.out is not None:
        given.out.write_text(json.dumps({"differing": differing, "old": old, "new": new}, indent=1) + "\n")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
