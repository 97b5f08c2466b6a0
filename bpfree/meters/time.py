"""Wall time by named windows, on a monotonic clock, with the device synchronised at both ends."""

from collections.abc import Mapping
from time import perf_counter

import torch

from bpfree.meters.windows import Windows


class Stopwatch(Windows):
    """Seconds spent in named windows, added up over every time a name is entered::

        watch = Stopwatch("cuda")
        with watch("train"):
            step()
            with watch("eval"):
                evaluate()
        watch.state()  # {"train": ..., "eval": ...}

    The time of an inner window is not counted in the outer one: see :class:`~bpfree.meters.Windows`.

    Args:
        device: synchronised whenever a window opens or closes.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        super().__init__(device, lambda: {"seconds": perf_counter()})

    def state(self) -> dict[str, float]:
        """Seconds by name, those of windows still open included; a name never entered is absent."""
        return {name: grown["seconds"] for name, grown in self.totals().items()}

    def load(self, state: Mapping[str, float]) -> None:
        """Replace all totals by those of :meth:`state`, to go on where another run stopped.

        Raises:
            BadValue: a window is open, or a total is negative or not finite.
        """
        self.replace({name: {"seconds": seconds} for name, seconds in state.items()})
