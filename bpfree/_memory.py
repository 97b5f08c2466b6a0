"""Free memory, for checks before large allocations."""

from __future__ import annotations

from pathlib import Path

import torch

from bpfree._errors import BadValue

_CGROUP = Path("/sys/fs/cgroup")


def available(device: torch.device) -> int | None:
    """Number of bytes that can be allocated on ``device``, or None if it is unknown."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    import psutil  # slow to import, and rarely needed

    of_machine: int = psutil.virtual_memory().available
    of_group = _left_in_group()
    return of_machine if of_group is None else min(of_machine, of_group)


def _left_in_group() -> int | None:
    """Number of free bytes within the limit of a container, or None if there is no limit."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    # Cached files are in memory, but are evicted when the memory is needed.
    return None if limit == "max" else max(0, int(limit) - used + int(stat.get("inactive_file", 0)))


def check_memory(needed: int, device: torch.device, what: str, fix: str) -> None:
    """Check that ``needed`` bytes can be allocated.

    Args:
        needed: Number of bytes.
        device: Device of the allocation.
        what: Subject of the message, in the plural.
        fix: What to do if there is not enough memory.

    Raises:
        BadValue: If there is not enough memory.
    """
    left = available(device)
    if left is not None and needed > left:
        raise BadValue(
            f"{what} need {needed / 1e9:.1f} GB of memory, and {device} has {left / 1e9:.1f} GB left: {fix}"
        )
