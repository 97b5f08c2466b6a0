"""The rows behind each value of a report, with their versions and machines."""

from __future__ import annotations

from collections.abc import Sequence

from bpfree.bench.arms import Group
from bpfree.bench.files import Mapped
from bpfree.bench.metric import metric_of
from bpfree.bench.results import Row


def provenance(groups: Sequence[Group]) -> list[tuple[str, str, str, list[Mapped]]]:
    """For each arm: anchor, name, setting, and the origin of each of its rows."""
    return [
        (
            f"rows-{g}-{a}",
            arm.name,
            group.title,
            [_origin(row) for row in sorted(arm.rows, key=lambda r: int(r["seed"]))],
        )
        for g, group in enumerate(groups)
        for a, arm in enumerate(group.arms)
    ]


def _origin(row: Row) -> Mapped:
    env, git = row["env"], row.get("git", {})
    metric = metric_of(row)
    value = metric.test(row)
    return {
        "seed": row["seed"],
        "row": row["cell_id"],
        metric.label: "–" if value is None else metric.written(metric.scale * value),
        "commit": git.get("commit", "–")[:10] + (" + changes" if git.get("dirty") else ""),
        "source": env.get("source", "–"),
        "machine": ", ".join(
            filter(None, [env.get("gpu_name"), env.get("cpu"), f"{env.get('threads', '?')} thread(s)"])
        ),
        "versions": ", ".join(
            f"{name} {env.get(name.lower(), '?')}" for name in ("bpfree", "torch", "Python")
        ),
        "started": row.get("protocol", {}).get("started", "–"),
        "segments": row.get("segments", 1),
    }
