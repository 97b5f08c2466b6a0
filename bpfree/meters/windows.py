"""Named windows over quantities that only grow: clocks, counters of energy, sums of samples."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from bpfree._errors import BadValue

#: What a window holds besides the quantities: how many stretches of time it is made of.
PIECES = "pieces"

Totals = dict[str, dict[str, float]]


def synchronize(device: torch.device | str) -> None:
    """Wait until all work queued on ``device`` is done; a CPU queues none.

    Raises:
        BadValue: the device is neither a CPU, a CUDA nor an MPS device.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    elif device.type != "cpu":
        raise BadValue(f"cannot synchronise a {device.type!r} device; use cpu, cuda or mps")


class Windows:
    """What quantities grew by in named windows, added up over every time a name is entered.

    Windows of different names may be nested. What grows in an inner window is not counted in the
    outer one, so an evaluation inside a training window costs the training nothing. A window ended
    by an exception counts like any other. One object belongs to one thread.

    Args:
        device: synchronised whenever a window opens or closes, so that queued work is charged
            to the window that queued it.
        read: the quantities now, by name; the same names each time.
    """

    def __init__(self, device: torch.device | str, read: Callable[[], Mapping[str, float]]) -> None:
        self._device = torch.device(device)
        self._read = read
        self._totals: Totals = {}
        self._open: list[str] = []
        self._since: Mapping[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Open the window ``name`` for the length of a ``with`` block.

        Raises:
            BadValue: a window of this name is already open.
        """
        if name in self._open:
            raise BadValue(f"the window {name!r} is already open; windows open now: {self._open}")
        self._settle()
        for quantity in (*self._since, PIECES):
            self._totals.setdefault(name, {}).setdefault(quantity, 0.0)
        self._totals[name][PIECES] += 1
        self._open.append(name)
        try:
            yield
        finally:
            try:
                self._settle()
            finally:
                # A failed synchronisation must not leave the window open for good.
                self._open.pop()
                if self._open:
                    self._totals[self._open[-1]][PIECES] += 1

    def totals(self) -> Totals:
        """Growth by window and quantity, open windows included; a window never entered is absent."""
        if self._open:
            self._settle()
        return {name: dict(grown) for name, grown in self._totals.items()}

    def replace(self, totals: Mapping[str, Mapping[str, float]]) -> None:
        """Replace all totals by those of :meth:`totals`, to go on where another run stopped.

        Raises:
            BadValue: a window is open, or a total is negative or not finite.
        """
        if self._open:
            raise BadValue(f"close every window before load(); open now: {self._open}")
        for name, grown in totals.items():
            if not isinstance(grown, Mapping):
                raise BadValue(f"{name!r} = {grown!r}: expected quantities; another version wrote this")
            for quantity, value in grown.items():
                if not (math.isfinite(value) and value >= 0):
                    raise BadValue(f"{quantity} of {name!r} must be finite and >= 0, got {value!r}")
        self._totals = {name: {q: float(v) for q, v in grown.items()} for name, grown in totals.items()}

    def _settle(self) -> None:
        """Charge what grew since the last boundary to the innermost open window."""
        synchronize(self._device)
        now = self._read()
        if self._open:
            grown = self._totals[self._open[-1]]
            for quantity, value in now.items():
                grown[quantity] += value - self._since[quantity]
        self._since = now
