"""Python calls of named functions inside bpfree in one training step of the default suite's nets.

    python -m benchmarks.profiles.step_calls [ARM ...] [--list]

Counts the second step of a training. Comprehensions, lambda functions and generator expressions are not
counted. Beside the calls are the number of files that they are in, and how often one call is in another file
than the last.
"""

from __future__ import annotations

import argparse
import sys
from itertools import pairwise

import torch

from benchmarks._record import changes, record
from benchmarks.profiles._default_arms import ARMS, calls


def main() -> int:
    """Count and write; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.profiles.step_calls",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "arms", nargs="*", default=[], metavar="ARM", help=f"of {', '.join(ARMS)}; default: all"
    )
    parser.add_argument("--list", action="store_true", help="print every call")
    given = parser.parse_args()
    if unknown := set(given.arms) - set(ARMS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(ARMS)}")
    torch.set_num_threads(1)
    figures = {}
    for name in given.arms or ARMS:
        made = calls(name)
        if given.list:
            print("\n".join(f"{name}: {file} {function}" for file, function in made))
        files = [file for file, _ in made]
        figures[name] = {
            "calls": len(made),
            "files": len(set(files)),
            "changes_of_file": sum(a != b for a, b in pairwise(files)),
        }
    changed = {key: value for key, value in changes(parser, given).items() if key != "list"}
    return record("step_calls", {"threads": 1, "arms": figures}, True, changed)


if __name__ == "__main__":
    sys.exit(main())
