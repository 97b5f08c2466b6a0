"""Many inputs for every trainer: right, refused before training, or warned about; none wrong, none raw.

    python -m benchmarks.robustness.never_silent [--only PATTERN] [--out FILE]

Right means equal to a loop written by hand in plain PyTorch, to a closed form, or to an invariant. A refusal
comes before the first step, leaves the network as it was, and says in a sentence what was wrong and what to
do. Each case declares which of the three are acceptable; the exit code is 1 if one comes to anything else.
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
from benchmarks.robustness._judge import Verdict, judge
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
    """Cases of whose name ``pattern`` (shell wildcards) is a part."""
    return [case for case in cases if pattern is None or fnmatch.fnmatch(case.name, f"*{pattern}*")]


def run(cases: Sequence[Case]) -> list[Verdict]:
    """Judge each; those that fail are printed at once."""
    torch.set_num_threads(1)
    verdicts = []
    for case in cases:
        verdicts.append(found := judge(case))
        if not found.passed:
            print(told(found), flush=True)
    return verdicts


def told(found: Verdict) -> str:
    """A verdict in a line."""
    wanted = " or ".join(sorted(found.case.expected))
    return f"{found.outcome:8} {found.case.name}   [expected {wanted}]   {found.reason}"


def figures(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """What goes into the result file."""
    counts = Counter(str(found.outcome) for found in verdicts)
    return {
        "cases": len(verdicts),
        "outcomes": dict(sorted(counts.items())),
        "trainers": dict(sorted(Counter(found.case.trainer for found in verdicts).items())),
        "not_as_declared": [told(found) for found in verdicts if not found.passed],
        "table": [
            {
                "trainer": found.case.trainer,
                "net": found.case.net,
                "input": found.case.input,
                "outcome": str(found.outcome),
                "said": _anywhere(found.reason),
            }
            for found in verdicts
        ],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Judge the cases; 0 if all came to what they declare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only", metavar="PATTERN", help="cases of whose name this is a part; * stands for any"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="result file; by default none with --only")
    asked = parser.parse_args(argv)
    verdicts = run(chosen(all_cases(), asked.only))
    if not verdicts:
        parser.error(f"--only {asked.only}: no case has that in its name")
    found, passed = figures(verdicts), all(verdict.passed for verdict in verdicts)
    print(f"{found['cases']} cases, {sum(v.seconds for v in verdicts):.0f} s: {found['outcomes']}")
    print(f"not as declared: {len(found['not_as_declared'])}")
    out = asked.out or (RESULTS / "never_silent.json" if asked.only is None else None)
    if out is not None:
        env = environment(torch.device("cpu"), torch.get_num_threads())
        content = {"name": "never_silent", "passed": passed, **found, "env": env, "git": git()}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
