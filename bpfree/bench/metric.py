"""The metric of a row, and how tables show its values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bpfree.bench.files import Mapped, Values
from bpfree.bench.numbers import number, plus_minus
from bpfree.bench.results import Row, figure
from bpfree.bench.statistics import Estimate
from bpfree.metrics import METRICS, Metric


@dataclass(frozen=True)
class RowMetric:
    """The metric that a row names.

    Attributes:
        name: Its name; the row stores the values as ``test_<name>`` and ``val_<name>``.
        greater_is_better: Whether the larger value is the better one.
        share: Whether values lie between 0 and 1, and are shown in percent.
    """

    name: str
    greater_is_better: bool = True
    share: bool = True

    @property
    def label(self) -> str:
        """The name in a heading."""
        return METRICS[self.name].label if self.name in METRICS else self.name.replace("_", " ")

    @property
    def title(self) -> str:
        """The label with a capital letter."""
        return self.label[:1].upper() + self.label[1:]

    @property
    def unit(self) -> str:
        """Unit of the values in tables: percent of a share, else none."""
        return "%" if self.share else ""

    @property
    def scale(self) -> float:
        """From a row's value to that of a table."""
        return 100 if self.share else 1

    def test(self, row: Row) -> float | None:
        """The value on the test data; None if the row has none."""
        return figure(row, "metrics", f"test_{self.name}")

    def validation(self, row: Row) -> float | None:
        """The value on the validation data; None if the row has none."""
        return figure(row, "metrics", f"val_{self.name}")

    def signed(self, value: float) -> float:
        """``value``, negated if smaller is better: of two signed values the larger is the better one."""
        return value if self.greater_is_better else -value

    def reaches(self, value: float, target: float) -> bool:
        """Whether a value is as good as ``target``."""
        return self.signed(value) >= self.signed(target)

    def head(self, text: str, separator: str = ", ") -> str:
        """A heading with the unit."""
        return f"{text}{separator}{self.unit}" if self.unit else text

    def text(self, value: float) -> str:
        """A value of a row, with its unit."""
        return self.head(self.written(self.scale * value), " ")

    def written(self, value: float, digits: int = 2) -> str:
        """A value in the unit of tables, without the unit."""
        return f"{value:.{digits}f}" if self.share else number(value)

    def spread(self, estimate: Estimate) -> str:
        """A mean over seeds, in the unit of tables, with the half width of its interval."""
        if not self.share:
            return plus_minus(estimate.mean, estimate.half)
        return f"{estimate.mean:.2f}" + ("" if estimate.half is None else f" ± {estimate.half:.2f}")


def metric_of(row: Row) -> RowMetric:
    """The metric of a row; the accuracy if it names none."""
    return metric_in(row.get("metrics", {}))


def metric_in(values: Values) -> RowMetric:
    """The metric that `describe` wrote into ``values``; the accuracy if there is none."""
    name = str(values.get("metric", "accuracy"))
    return RowMetric(name, bool(values.get("greater_is_better", True)), bool(values.get("share", True)))


def describe(metric: Metric | RowMetric) -> Mapped:
    """What a row stores of a metric."""
    return {"metric": metric.name, "greater_is_better": metric.greater_is_better, "share": metric.share}


def common(metrics: Iterable[RowMetric]) -> RowMetric | None:
    """The metric, if it is the same everywhere."""
    different = set(metrics)
    return different.pop() if len(different) == 1 else None
