"""The claims of bpfree: each module measures one claim together with the controls that would refute it.

A module defines ``TITLE``, the claim; ``HOLDS_IF``, its threshold in words; and ``measure``, which takes the
sizes as keyword arguments, prints each control when it is measured, and returns ``{"holds": bool, "figure":
the ratios as a short text, ...}`` with all measured values. It may define ``possible``, which returns the
reason why this machine cannot measure the claim, or None. ``python -m benchmarks.claims`` runs all modules of
this package but those in `SCRIPTS`.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from benchmarks import _record

#: Exit codes of a claim's process; 1 is an error.
HOLDS, DOES_NOT, CANNOT = 0, 3, 4

#: Scripts with command line options or pictures of their own. Each is run by its own command.
SCRIPTS = ("acoustic_cavity", "autoencoder", "physical_curves", "vowel_features")


def names() -> list[str]:
    """Names of the claims, sorted."""
    modules = (m.name for m in pkgutil.iter_modules(__path__))
    return sorted(name for name in modules if not name.startswith("_") and name not in SCRIPTS)


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
    result = claim.measure()
    _record.write(
        f"claims/{name}", {"title": claim.TITLE, "holds_if": claim.HOLDS_IF, **result}, result["holds"]
    )
    print(f"{name}: {'holds' if result['holds'] else 'does not hold'}: {result['figure']}", flush=True)
    return HOLDS if result["holds"] else DOES_NOT
