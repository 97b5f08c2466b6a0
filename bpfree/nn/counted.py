"""Modules that ask something outside the computer: every row they are shown costs, and is counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol

from torch import nn

#: What rows are sent for. For ``"shape"`` none is: the answer is a fixed row of the right shape.
Purpose = Literal["train", "eval", "calibration", "shape"]


class Apparatus(Protocol):
    """What stands behind one or several `Counted` modules."""

    @property
    def passes(self) -> dict[str, int]:
        """Rows sent so far, by purpose."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, counters included: numpy arrays, and whatever JSON can hold."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up such a state."""


class Counted(nn.Module):
    """A module whose calls are counted, by what they are made for.

    It is never shown a row more than is asked for: no batch is filled up, nothing is computed twice.

    Attributes:
        purpose: What the calls that come next are made for, see `asking`.
    """

    purpose: Purpose = "train"

    @property
    def apparatus(self) -> Apparatus | None:
        """What it asks, modules that share one are counted together; None if it asks nothing after all."""
        return None


def counted(module: nn.Module) -> list[Counted]:
    """The modules inside ``module`` that ask something, in order."""
    return [m for m in module.modules() if isinstance(m, Counted) and m.apparatus is not None]


def apparatus(module: nn.Module) -> list[Apparatus]:
    """What the counted modules inside ``module`` ask, each once, in order."""
    found = [m.apparatus for m in counted(module)]
    return list({id(one): one for one in found if one is not None}.values())


def passes(module: nn.Module) -> dict[str, int]:
    """Rows that everything inside ``module`` was sent so far, by purpose; empty if nothing is counted."""
    total: dict[str, int] = {}
    for one in apparatus(module):
        for purpose, rows in one.passes.items():
            total[purpose] = total.get(purpose, 0) + rows
    return total


@contextmanager
def asking(module: nn.Module, purpose: Purpose) -> Iterator[None]:
    """Count the calls that are made inside for ``purpose``, and go on as before afterwards.

    Modules that are asked for shapes alone stay so.
    """
    before = [(m, m.purpose) for m in counted(module) if m.purpose != "shape"]
    for m, _ in before:
        m.purpose = purpose
    try:
        yield
    finally:
        for m, own in before:
            m.purpose = own
