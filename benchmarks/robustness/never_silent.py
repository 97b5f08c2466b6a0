"""Many inputs for every trainer: each is right, refused before training, or warned about.

    python -m benchmarks.robustness.never_silent [--only PATTERN] [--out FILE]

Right means equal to a loop in plain PyTorch, to a closed form, or to an invariant. A refusal comes before the
first step, leaves the network unchanged, and names the wrong value and the fix in one sentence. Each case
declares which of the three outcomes are acceptable; the exit code is 1 if one has another outcome.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks._record import RESULTS
from benchmarks.robustness._case import Case
from benchmarks.robustness._verdict import Verdict, run_case
from bpfree.bench.environment import environment, git

#: Modules with cases, in the order in which they run.
KINDS = (
    "tables",
    "training",
    "rules",
    "batches",
    "forward_forward",
    "optimizers",
    "images",
    "standardized",
    "predictions",
    "layers",
    "cuts",
    "sharing",
    "layouts",
    "freezing",
    "modules",
    "files",
    "settings",
    "losses",
    "graphs",
    "devices",
    "served",
    "readers",
)


def _anywhere(text: str) -> str:
    """``text`` without the names of this machine's interpreter and of temporary folders."""
    text = text.replace(sys.executable, "python")
    return re.sub(rf"{re.escape(tempfile.gettempdir())}/\w+", "FOLDER", text)


def all_cases() -> list[Case]:
    """The cases of all kinds."""
    modules = (importlib.import_module(f"benchmarks.robustness.{kind}") for kind in KINDS)
    return [case for module in modules for case in module.cases()]


def chosen(cases: Sequence[Case], pattern: str | None) -> list[Case]:
    """Cases whose name contains ``pattern`` (shell wildcards)."""
    return [case for case in cases if pattern is None or fnmatch.fnmatch(case.name, f"*{pattern}*")]


def run(cases: Sequence[Case]) -> list[Verdict]:
    """Run each case; those that fail are printed at once."""
    torch.set_num_threads(1)
    verdicts = []
    for case in cases:
        verdicts.append(verdict := run_case(case))
        if not verdict.passed:
            print(describe(verdict), flush=True)
    return verdicts


def describe(verdict: Verdict) -> str:
    """A verdict as one line."""
    expected = " or ".join(sorted(verdict.case.expected))
    return f"{verdict.outcome:8} {verdict.case.name}   [expected {expected}]   {verdict.reason}"


def figures(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The content of the result file."""
    counts = Counter(str(verdict.outcome) for verdict in verdicts)
    return {
        "cases": len(verdicts),
        "outcomes": dict(sorted(counts.items())),
        "trainers": dict(sorted(Counter(verdict.case.trainer for verdict in verdicts).items())),
        "not_as_declared": [describe(verdict) for verdict in verdicts if not verdict.passed],
        "table": [
            {
                "trainer": verdict.case.trainer,
                "net": verdict.case.net,
                "input": verdict.case.input,
                "outcome": str(verdict.outcome),
                "said": _anywhere(verdict.reason),
            }
            for verdict in verdicts
        ],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cases; 0 if all outcomes are as declared."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only", metavar="PATTERN", help="cases whose name contains this; * matches anything"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="result file; by default none with --only")
    given = parser.parse_args(argv)
    verdicts = run(chosen(all_cases(), given.only))
    if not verdicts:
        parser.error(f"--only {given.only}: no case has a name that contains it")
    content, passed = figures(verdicts), all(verdict.passed for verdict in verdicts)
    print(f"{content['cases']} cases, {sum(v.seconds for v in verdicts):.0f} s: {content['outcomes']}")
    print(f"not as declared: {len(content['not_as_declared'])}")
    out = given.out or (RESULTS / "never_silent.json" if given.only is None else None)
    if out is not None:
        env = environment(torch.device("cpu"), torch.get_num_threads())
        content = {"name": "never_silent", "passed": passed, **content, "env": env, "git": git()}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
