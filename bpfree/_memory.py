"""How much memory is left, for checks before something large is allocated."""

from __future__ import annotations

from pathlib import Path

import torch

from bpfree._errors import BadValue

_CGROUP = Path("/sys/fs/cgroup")


def available(device: torch.device) -> int | None:
    """Bytes that can still be allocated on ``device``; None where that is unknown."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    import psutil  # takes long to import, and few need it

    of_machine: int = psutil.virtual_memory().available
    of_group = _left_in_group()
    return of_machine if of_group is None else min(of_machine, of_group)


def _left_in_group() -> int | None:
    """What the limit of a container leaves; None: it has no limit."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    # Files that were read are kept in memory as long as nobody needs it.
    return None if limit == "max" else max(0, int(limit) - used + int(stat.get("inactive_file", 0)))


def check_memory(needed: int, device: torch.device, what: str, fix: str) -> None:
    """Check that ``needed`` bytes can be allocated.

    Raises:
        BadValue: If not: ``what`` needs them, and ``fix`` is what to do.
    """
    left = available(device)
    if left is not None and needed > left:
        raise BadValue(
            f"{what} need {needed / 1e9:.1f} GB of memory, and {device} has {left / 1e9:.1f} GB left: {fix}"
        )
