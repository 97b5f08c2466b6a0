"""Wall time of named windows, by a monotonic clock, with the device synchronized at both ends."""

from collections.abc import Mapping
from time import perf_counter

import torch

from bpfree.meters.windows import Windows


class Stopwatch(Windows):
    """Measures the seconds spent in named windows, summed over all windows of a name::

        watch = Stopwatch("cuda")
        with watch("train"):
            step()
            with watch("eval"):
                evaluate()
        watch.state()  # {"train": ..., "eval": ...}

    The time of an inner window is not counted in the outer one, see `Windows`.

    Args:
        device: Torch device, synchronized whenever a window opens or closes.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        super().__init__(device, lambda: {"seconds": perf_counter()})

    def state(self) -> dict[str, float]:
        """Return the seconds by name, including open windows."""
        return {name: grown["seconds"] for name, grown in self.totals().items()}

    def load(self, state: Mapping[str, float]) -> None:
        """Replace all totals by those of `state`, to resume a run.

        Raises:
            BadValue: If a window is open, or a total is negative or not finite.
        """
        self.replace({name: {"seconds": seconds} for name, seconds in state.items()})
