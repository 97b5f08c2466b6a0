"""Update rules by the names that settings use."""

from __future__ import annotations

from typing import Literal

from bpfree.core.update_rules import AnyRule, Autograd, ClosedFormGradient

#: Values of the setting ``gradients``.
RuleName = Literal["autograd", "analytic"]


def make_rule(gradients: RuleName) -> AnyRule:
    """Return a new rule: `Autograd`, or `ClosedFormGradient` for ``"analytic"``."""
    return Autograd() if gradients == "autograd" else ClosedFormGradient()
