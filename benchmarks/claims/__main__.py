"""Measure the claims and print which of them hold.

    python -m benchmarks.claims [NAME ...]   # by default all claims that this machine can measure
    python -m benchmarks.claims --table      # the table alone, from benchmarks/results/claims

Each claim is measured in its own process, so that claims do not share memory or threads.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence

from benchmarks import _record, claims

HEAD = "| claim | holds if | measured | |\n| --- | --- | --- | --- |"


def row(name: str, failed: str | None = None) -> str:
    """The line of a claim in the table, from its file, or ``failed`` if its measurement has just failed."""
    claim = claims.load(name)
    title, holds_if, figure = claim.TITLE, claim.HOLDS_IF, "–"
    path = _record.RESULTS / "claims" / f"{name}.json"
    if failed is not None:
        verdict = failed
    elif path.exists():
        result = json.loads(path.read_text())
        title, holds_if, figure = result["title"], result["holds_if"], result["figure"]
        verdict = "holds" if result["holds"] else "**does not hold**"
    else:
        reason = claims.why_not(claim)
        verdict = "not measured yet" if reason is None else f"cannot be measured here: {reason}"
    return f"| {title} | {holds_if} | {figure} | {verdict} |"


def table(failed: Mapping[str, str]) -> str:
    """The table of all claims, in markdown."""
    return "\n".join([HEAD, *(row(name, failed.get(name)) for name in claims.names())])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the named claims; 0 if all that could be measured hold."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.claims",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(claims.names())}")
    parser.add_argument("--table", action="store_true", help="print the table without measuring")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.names) - set(claims.names()):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(claims.names())}")
    failed, passed = dict[str, str](), True
    for name in [] if arguments.table else arguments.names or claims.names():
        code = subprocess.run([sys.executable, "-m", f"benchmarks.claims.{name}"], check=False).returncode
        passed &= code in (claims.HOLDS, claims.CANNOT)
        if code not in (claims.HOLDS, claims.DOES_NOT, claims.CANNOT):
            failed[name] = f"**measuring it failed** (exit code {code})"
    print(table(failed))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
