"""Under which conditions a figure came about: figures are compared only where these agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bpfree.bench.arms import Arm
from bpfree.bench.results import Row


def version(row: Row) -> str:
    """The source of the package and the release of torch; the build of a release is the machine's."""
    env = row["env"]
    return (
        f"source {env.get('source', 'unknown')}, torch {str(env.get('torch', 'unknown')).partition('+')[0]}"
    )


def machine(row: Row) -> str:
    """Processor and GPU, how much of them was used, and by how many cells at once."""
    env, jobs = row["env"], row.get("protocol", {}).get("jobs", 1)
    cuda = env.get("cuda") and f"CUDA {env['cuda']}"
    threads = f"{env.get('threads', '?')} thread(s)"
    at_once = f"{jobs} cells at once" if jobs > 1 else None
    return ", ".join(filter(None, [env.get("gpu_name"), cuda, env.get("cpu"), threads, at_once]))


def scope(row: Row) -> str:
    """Whether the energy was measured or modelled, and by what."""
    return str(row.get("energy", {}).get("scope"))


#: By the name under which a measure asks for it, which is also how a note calls what differs.
CONDITIONS: dict[str, Callable[[Row], str]] = {"version": version, "machine": machine, "scope": scope}


def unlike(row: Row, other: Row, names: Sequence[str]) -> list[str]:
    """Which of these conditions the two rows do not share."""
    return [name for name in names if CONDITIONS[name](row) != CONDITIONS[name](other)]


def several(arm: Arm, name: str) -> list[str]:
    """The values of a condition over the rows of an arm, each once."""
    return list(dict.fromkeys(CONDITIONS[name](row) for row in arm.rows))
