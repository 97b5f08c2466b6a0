"""What changed between two folders of results: `python -m bpfree.bench compare BEFORE AFTER`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bpfree._errors import BadValue
from bpfree.bench.arms import Arm, differing, failures, groups, last_line
from bpfree.bench.measures import VERSION, Comparison, Pair, compare, left_out, short
from bpfree.bench.results import Row


@dataclass
class Changes:
    """The second result against the first.

    Attributes:
        comparisons: Arms of both results, after against before, in every measure of both.
        missing: Arms and seeds of the first result alone, each with the reason.
        new: Arms of the second result alone.
        notes: Values that were not compared, with the reason.
    """

    comparisons: list[Comparison]
    missing: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def worse(self) -> list[Comparison]:
        """The comparisons in which the second is worse, by more than a negligible amount."""
        return [comparison for comparison in self.comparisons if comparison.loses]

    @property
    def exit_code(self) -> int:
        """0; or 1 if something is worse or missing."""
        return int(bool(self.worse or self.missing))


def changes(before: Sequence[Row], after: Sequence[Row]) -> Changes:
    """Compare two results, arm by arm of the same name in the same setting, paired by seed.

    Raises:
        BadValue: If no arm with a common seed is in both.
    """
    old, new = _arms(before), _arms(after)
    pairs: list[Pair] = [
        (title, new[title, name], arm) for (title, name), arm in old.items() if (title, name) in new
    ]
    if not any(_seeds(ours) & _seeds(theirs) for _, ours, theirs in pairs):
        raise BadValue(
            "the two results have no arm with a common seed: nothing can be compared; "
            f"the first has {_list(old)}, the second {_list(new)}"
        )
    # The version of the package may differ: it is what is compared.
    result = Changes(compare(pairs, aside=(VERSION,)), list(_missing(old, new, after)))
    result.new = [f"{title}: {name}" for title, name in new if (title, name) not in old]
    for title, ours, theirs in pairs:
        if settings := differing(ours.rows[0], theirs.rows[0]):
            result.notes.append(f"{title}: {ours.name} has other settings now: {settings}")
    result.notes += left_out(pairs, aside=(VERSION,))
    return result


def _arms(rows: Sequence[Row]) -> dict[tuple[str, str], Arm]:
    # The group of matched passes contains the baseline of own convergence again.
    return {
        (group.title, arm.name): arm
        for group in groups(rows)
        for arm in group.arms
        if not (group.protocol == "B" and arm.is_baseline)
    }


def _seeds(arm: Arm) -> set[int]:
    return {row["seed"] for row in arm.rows}


def _list(arms: dict[tuple[str, str], Arm]) -> str:
    return ", ".join(f"{name} ({title})" for title, name in arms) or "none"


def _missing(
    old: dict[tuple[str, str], Arm], new: dict[tuple[str, str], Arm], after: Sequence[Row]
) -> Iterator[str]:
    failed = {(row["arm"], row["seed"]): row for row in failures(after)}
    for (title, name), arm in old.items():
        there = _seeds(new[title, name]) if (title, name) in new else set()
        for seed in sorted(_seeds(arm) - there):
            row = failed.get((arm.rows[0]["arm"], seed))
            why = "no row" if row is None else f"{row['status']}: {last_line(row)}"
            yield f"{title}: {name}, seed {seed}: {why}"


def show(result: Changes, console: Console) -> None:
    """Print the changes; values that are equal to the last digit are only counted."""
    changed = [c for c in result.comparisons if not (c.effect.exact and c.effect.p_different == 1)]
    table = Table(title_justify="left")
    for column in ("setting", "arm", "measure", "pairs", "after against before", "verdict"):
        table.add_column(column, overflow="fold")
    for comparison in changed:
        style = "red" if comparison.loses else "green" if comparison.wins else None
        cells = (comparison.group, comparison.arm, comparison.measure.label, str(comparison.effect.n))
        table.add_row(*(Text(cell) for cell in (*cells, short(comparison), comparison.text)), style=style)
    if changed:
        console.print(table)
    console.print(
        f"the same to the last digit: {len(result.comparisons) - len(changed)} of {len(result.comparisons)}"
    )
    for title, lines in (("missing", result.missing), ("new", result.new), ("note", result.notes)):
        for line in lines:
            console.print(Text(f"{title}: {line}"), soft_wrap=True)
    worse = ", ".join(f"{c.arm} in {c.measure.label}" for c in result.worse)
    console.print(Text(f"worse: {worse or 'nothing that these seeds can show'}"), soft_wrap=True)
