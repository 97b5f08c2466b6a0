"""Notes on blocks that are at chance or worse than the block below, which a good prediction may hide."""

from __future__ import annotations

from bpfree._drops import drops
from bpfree.bench.arms import Arm
from bpfree.bench.results import figure
from bpfree.bench.statistics import estimate


def weak_blocks(arm: Arm) -> str:
    """A note on the arm's blocks that are clearly worse than the block below, or at chance; empty if none is.

    Values are means over seeds. A block is at chance if its 95 % interval over seeds includes the chance
    level of the rows; that needs several seeds, and a chance level in every row.
    """
    values_of_rows = [row["metrics"].get("blocks") or [] for row in arm.rows]
    in_points = arm.metric.share and arm.metric.greater_is_better
    if len({len(blocks) for blocks in values_of_rows}) != 1 or not in_points:
        return ""
    by_block = {
        f"block {k + 1}": values
        for k, values in enumerate(zip(*values_of_rows, strict=True))
        if None not in values
    }
    estimates = {name: estimate(values) for name, values in by_block.items()}
    sentences = drops({name: mean.mean for name, mean in estimates.items()})
    levels = [level for row in arm.rows if (level := figure(row, "metrics", "chance")) is not None]
    chance = max(levels) if len(levels) == len(arm.rows) else None
    for name, mean in estimates.items():
        if chance is not None and mean.half is not None and mean.mean - mean.half <= chance:
            sentences.append(
                f"{name} has {100 * mean.mean:.1f} ± {100 * mean.half:.1f} %, which reaches down to chance "
                f"({100 * chance:.1f} %)"
            )
    return f"{arm.name}: {'; '.join(sentences)}" if sentences else ""
