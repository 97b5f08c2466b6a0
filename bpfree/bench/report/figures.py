"""What the tables of a report are made of: figures, and how they are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bpfree.bench.arms import Arm
from bpfree.bench.measures import Comparison, Measure, readable, short
from bpfree.bench.numbers import number, plus_minus
from bpfree.bench.statistics import estimate


@dataclass(frozen=True)
class Figure:
    """A cell of a table: its text, a second line, what it is sorted by, and a class."""

    text: str
    note: str = ""
    order: float | str | None = None
    kind: str = ""


@dataclass
class Table:
    """A table that can be sorted and filtered.

    Attributes:
        id: Its name in the page.
        caption: What it shows.
        heads: Names of the columns; the first names the row.
        rows: Each a figure per column.
        anchors: Where the name of a row leads to, by row.
        filters: Columns with a choice of what to show.
    """

    id: str
    caption: str
    heads: list[str]
    rows: list[list[Figure]] = field(default_factory=list)
    anchors: list[str] = field(default_factory=list)
    filters: list[int] = field(default_factory=list)

    def without_empty(self) -> Table:
        """The same without the columns in which nothing stands."""
        kept = [i for i in range(len(self.heads)) if any(row[i].text not in ("", "–") for row in self.rows)]
        rows = [[row[i] for i in kept] for row in self.rows]
        filters = [
            kept.index(i) for i in self.filters if i in kept and len({row[i].text for row in self.rows}) > 1
        ]
        return Table(self.id, self.caption, [self.heads[i] for i in kept], rows, self.anchors, filters)


NOTHING = Figure("–")


def of_measure(measure: Measure, arm: Arm, comparison: Comparison | None) -> Figure:
    """A cost of an arm, over its seeds, and below it the ratio to the baseline's."""
    measure = readable(measure, [arm])
    values = [value * measure.scale for value in measure.averaged(arm)]
    if not values:
        return NOTHING if comparison is None else Figure("–", short(comparison), None, kind(comparison))
    found = estimate(values)
    text = in_unit(plus_minus(found.mean, found.half), measure)
    note = "" if comparison is None else short(comparison)
    return Figure(text, note, found.mean / measure.scale, "" if comparison is None else kind(comparison))


def head(measure: Measure) -> str:
    """The name of a column: with the unit, if that is the same for all."""
    return measure.label if len(measure.units) > 1 or not measure.unit else f"{measure.label}, {measure.unit}"


def in_unit(text: str, measure: Measure) -> str:
    """A figure with its unit, if that is not the same for the whole column."""
    return f"{text} {measure.unit}" if len(measure.units) > 1 else text


def kind(comparison: Comparison) -> str:
    """The class of a figure that is decided."""
    return "better" if comparison.wins else "worse" if comparison.loses else ""


def mean(values: Sequence[float | None]) -> Figure:
    """The mean of what is there."""
    there = [value for value in values if value is not None]
    if not there:
        return NOTHING
    value = sum(there) / len(there)
    return Figure(f"{value:g}" if value == int(value) and value < 1000 else number(value), order=value)
