"""Time of a training step at two revisions, on small nets of the default suite.

    python -m benchmarks.profiles.step_time OLD NEW [--rounds 15] [--only ARM]

OLD and NEW are revisions of this repository, or folders with a checkout. Each has a process of its own, with
one thread; the two are never timed at once. In every round both train each arm for a few epochs, in
alternating order; the ratio of their mean step times within a round is taken. Written are the median ratio
over rounds and its 95 % interval, by the clock and by the processor's time, which other programs on the
machine disturb less. Passed: no arm is slower, that is, no interval of the processor's time is above 1.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks._record import changes, record
from benchmarks.claims.cheaper_step import interval
from benchmarks.profiles import _default_arms
from benchmarks.profiles._default_arms import ARMS
from benchmarks.robustness.same_bits import ROOT, checkout


class Worker:
    """A process that times steps with the source in ``tree``."""

    def __init__(self, tree: Path) -> None:
        command = [sys.executable, "-W", "ignore", _default_arms.__file__]
        env = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=env, cwd=tree, stdin=pipe, stdout=pipe, text=True)
        self.facts: dict[str, Any] = self._answer()
        if Path(self.facts.pop("bpfree")).parents[1] != tree.resolve():
            raise SystemExit(f"{tree}: bpfree is imported from another folder")

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the process that times steps ended with exit code {self.process.wait()}")
        return json.loads(line)

    def time(self, arm: str) -> tuple[float, float]:
        """Mean time of a step of the arm, by the clock and by the processor's time, in seconds."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{arm}\n")
        self.process.stdin.flush()
        clock, processor = self._answer()
        return clock, processor

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@contextmanager
def workers(revisions: Sequence[str]) -> Iterator[list[Worker]]:
    """A worker for each revision, and for the second one its work tree."""
    with checkout(revisions[0]) as old, checkout(revisions[1]) as new:
        made: list[Worker] = []
        try:
            for tree in (old, new):
                made.append(Worker(tree))
            yield made
        finally:
            for worker in made:
                worker.close()


def commit(revision: str) -> str:
    """The commit that a revision, or the checkout in a folder, is at."""
    folder, name = (revision, "HEAD") if Path(revision, "bpfree").is_dir() else (str(ROOT), revision)
    done = subprocess.run(
        ["git", "-C", folder, "rev-parse", f"{name}^{{commit}}"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def compare(old: Sequence[Sequence[float]], new: Sequence[Sequence[float]]) -> dict[str, Any]:
    """New over old time, round by round.

    Args:
        old: For each round the seconds of a step by the clock and by the processor's time.
        new: As ``old``.
    """
    figures: dict[str, Any] = {"old_seconds": [list(x) for x in old], "new_seconds": [list(x) for x in new]}
    for k, name in enumerate(("clock", "processor")):
        ratios = [b[k] / a[k] for a, b in zip(old, new, strict=True)]
        figures[name] = {"ratio": statistics.median(ratios), "interval": interval(ratios)}
    return figures


def measure(made: Sequence[Worker], arms: Sequence[str], rounds: int) -> dict[str, Any]:
    """Time every arm in every round with both workers."""
    times: dict[str, tuple[list[Any], list[Any]]] = {arm: ([], []) for arm in arms}
    for number in range(-1, rounds):  # one round to warm up
        for arm in arms:
            order = (0, 1) if number % 2 else (1, 0)
            for k in order:
                span = made[k].time(arm)
                if number >= 0:
                    times[arm][k].append(span)
    return {arm: compare(*both) for arm, both in times.items()}


def main() -> int:
    """Time and write; 0 if no arm is slower."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.profiles.step_time",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("old", help="revision or folder")
    parser.add_argument("new", help="revision or folder")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", action="append", choices=list(ARMS), metavar="ARM")
    given = parser.parse_args()
    if given.rounds < 9:
        parser.error(f"--rounds {given.rounds}: the interval needs at least 9")
    with workers([given.old, given.new]) as made:
        arms = measure(made, given.only or list(ARMS), given.rounds)
        facts = {name: worker.facts for name, worker in zip(("old", "new"), made, strict=True)}
    for arm, figures in arms.items():
        for kind in ("clock", "processor"):
            low, high = figures[kind]["interval"]
            print(f"{arm}, {kind}: {figures[kind]['ratio']:.3f} [{low:.3f}, {high:.3f}]", flush=True)
    revisions = {name: facts[name] | {"commit": commit(getattr(given, name))} for name in ("old", "new")}
    passed = all(figures["processor"]["interval"][0] <= 1 for figures in arms.values())
    changed = {key: value for key, value in changes(parser, given).items() if key not in ("old", "new")}
    return record("step_time", {"threads": 1, "revisions": revisions, "arms": arms}, passed, changed)


if __name__ == "__main__":
    sys.exit(main())
