"""What bpfree claims: a module each, which measures its claim beside the controls that would refute it.

A module holds ``TITLE``, what is claimed; ``HOLDS_IF``, the threshold in words; and ``measure``, which takes
the sizes as keyword arguments, prints every control as it comes, and returns ``{"holds": bool, "figure": the
ratios as a short text, ...}`` with all that it measured. It may hold ``possible``, which returns why this
machine cannot measure it, or None. ``python -m benchmarks.claims`` finds whatever modules there are.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from benchmarks import _record

#: What a claim's process ends with; 1 is that of an error.
HOLDS, DOES_NOT, CANNOT = 0, 3, 4


def names() -> list[str]:
    """The claims, in the order of their names."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def load(name: str) -> ModuleType:
    """The module of a claim."""
    return importlib.import_module(f"{__name__}.{name}")


def why_not(claim: ModuleType) -> str | None:
    """Why this machine cannot measure a claim, or None."""
    reason: str | None = claim.possible() if hasattr(claim, "possible") else None
    return reason


def run(name: str) -> int:
    """Measure a claim at its full size and write ``results/claims/<name>.json``; returns the exit code."""
    claim = load(name)
    if (reason := why_not(claim)) is not None:
        print(f"{name}: cannot be measured here: {reason}")
        return CANNOT
    print(f"{name}: {claim.TITLE}; holds if {claim.HOLDS_IF}", flush=True)
    found = claim.measure()
    _record.write(
        f"claims/{name}", {"title": claim.TITLE, "holds_if": claim.HOLDS_IF, **found}, found["holds"]
    )
    print(f"{name}: {'holds' if found['holds'] else 'does not hold'}: {found['figure']}", flush=True)
    return HOLDS if found["holds"] else DOES_NOT
