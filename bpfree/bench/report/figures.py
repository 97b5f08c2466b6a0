"""Tables of a report and their cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bpfree.bench.arms import Arm
from bpfree.bench.measures import Comparison, Measure, readable, short
from bpfree.bench.numbers import number, plus_minus
from bpfree.bench.statistics import estimate


@dataclass(frozen=True)
class Figure:
    """A cell of a table: its text, a second line, its sort key, and a CSS class."""

    text: str
    note: str = ""
    order: float | str | None = None
    kind: str = ""


@dataclass
class Table:
    """A table that can be sorted and filtered.

    Attributes:
        id: Its id in the page.
        caption: Its caption.
        heads: Names of the columns; the first column names the row.
        rows: A figure per column for each row.
        anchors: Link targets of the names of the rows.
        filters: Columns with a menu for filtering.
    """

    id: str
    caption: str
    heads: list[str]
    rows: list[list[Figure]] = field(default_factory=list)
    anchors: list[str] = field(default_factory=list)
    filters: list[int] = field(default_factory=list)

    def without_empty(self) -> Table:
        """The same without empty columns."""
        texts = [[row[i].text for row in self.rows] for i in range(len(self.heads))]
        columns = [i for i, column in enumerate(texts) if any(text not in ("", "–") for text in column)]
        rows = [[row[i] for i in columns] for row in self.rows]
        filters = [columns.index(i) for i in self.filters if i in columns and len(set(texts[i])) > 1]
        return Table(self.id, self.caption, [self.heads[i] for i in columns], rows, self.anchors, filters)


NOTHING = Figure("–")


def of_measure(measure: Measure, arm: Arm, comparison: Comparison | None) -> Figure:
    """A cost of an arm, as a mean over seeds, with its ratio to the baseline's."""
    measure = readable(measure, [arm])
    values = [value * measure.scale for value in measure.averaged(arm)]
    if not values:
        return NOTHING if comparison is None else Figure("–", short(comparison), None, kind(comparison))
    over_seeds = estimate(values)
    text = in_unit(plus_minus(over_seeds.mean, over_seeds.half), measure)
    note = "" if comparison is None else short(comparison)
    return Figure(text, note, over_seeds.mean / measure.scale, "" if comparison is None else kind(comparison))


def head(measure: Measure) -> str:
    """The heading of a column, with the unit if it is the same in all rows."""
    return measure.label if len(measure.units) > 1 or not measure.unit else f"{measure.label}, {measure.unit}"


def in_unit(text: str, measure: Measure) -> str:
    """A number, with its unit if that differs between rows."""
    return f"{text} {measure.unit}" if len(measure.units) > 1 else text


def kind(comparison: Comparison) -> str:
    """The CSS class of a comparison with a verdict."""
    return "better" if comparison.wins else "worse" if comparison.loses else ""


def mean(values: Sequence[float | None]) -> Figure:
    """The mean of the values that are not None."""
    known = [value for value in values if value is not None]
    if not known:
        return NOTHING
    value = sum(known) / len(known)
    return Figure(f"{value:g}" if value == int(value) and value < 1000 else number(value), order=value)
