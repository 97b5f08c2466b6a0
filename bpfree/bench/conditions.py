"""The conditions of a measured value: values are compared only where their conditions agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bpfree.bench.arms import Arm
from bpfree.bench.results import Row


def version(row: Row) -> str:
    """The source of the package and the release of torch, without the build."""
    env = row["env"]
    return (
        f"source {env.get('source', 'unknown')}, torch {str(env.get('torch', 'unknown')).partition('+')[0]}"
    )


def machine(row: Row) -> str:
    """Processor, GPU, threads, and the number of cells that ran at once."""
    env, jobs = row["env"], row.get("protocol", {}).get("jobs", 1)
    cuda = env.get("cuda") and f"CUDA {env['cuda']}"
    threads = f"{env.get('threads', '?')} thread(s)"
    at_once = f"{jobs} cells at once" if jobs > 1 else None
    return ", ".join(filter(None, [env.get("gpu_name"), cuda, env.get("cpu"), threads, at_once]))


def scope(row: Row) -> str:
    """Whether the energy was measured or modeled, and by what."""
    return str(row.get("energy", {}).get("scope"))


#: Conditions by name, as measures require them and notes mention them.
CONDITIONS: dict[str, Callable[[Row], str]] = {"version": version, "machine": machine, "scope": scope}


def unlike(row: Row, other: Row, names: Sequence[str]) -> list[str]:
    """The conditions among ``names`` in which the two rows differ."""
    return [name for name in names if CONDITIONS[name](row) != CONDITIONS[name](other)]


def several(arm: Arm, name: str) -> list[str]:
    """The distinct values of a condition over the rows of an arm."""
    return list(dict.fromkeys(CONDITIONS[name](row) for row in arm.rows))
