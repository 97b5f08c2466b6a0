"""The charts of a report, as inline SVG of matplotlib.

Their colors are CSS variables of the page, so that one SVG serves the light and the dark theme.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from bpfree.bench.arms import Arm, Group
from bpfree.bench.files import Values
from bpfree.bench.measures import Measure, on_one_chart, on_test
from bpfree.bench.metric import metric_of
from bpfree.bench.results import Row
from bpfree.bench.statistics import estimate
from bpfree.bench.targets import cpu_until, flops_until, joules_at, seconds_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"

#: Placeholder colors for matplotlib, and the CSS variables that replace them.
INK, MUTED, GRID = "#010203", "#010204", "#010205"
SERIES = tuple(f"#0203{i:02d}" for i in range(9))
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line"} | {
    c: f"--series-{i}" for i, c in enumerate(SERIES)
}
MARKERS = "o^Dv*PX<>"
SYMBOLS = dict(zip("s" + MARKERS, "■●▲◆▼★✚✖◀▶", strict=True))

RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bpfree",
    "font.size": 11.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.linewidth": 0.7,
}


@dataclass(frozen=True)
class Style:
    """Color and marker of an arm in all charts."""

    color: str
    marker: str

    @property
    def css(self) -> str:
        """The CSS variable of the color."""
        return VARIABLES[self.color]

    @property
    def symbol(self) -> str:
        """The marker as a character."""
        return SYMBOLS[self.marker]


@dataclass(frozen=True)
class Chart:
    """An SVG with its title and caption."""

    title: str
    svg: str
    caption: str


def styles(groups: Sequence[Group]) -> dict[str, Style]:
    """A style for each name of an arm: the first is for backpropagation, and 72 are distinct."""
    result: dict[str, Style] = {}
    others = zip(itertools.cycle(SERIES[1:]), itertools.cycle(MARKERS), strict=False)
    for arm in (arm for group in groups for arm in group.arms):
        if arm.name not in result:
            plain = arm.is_baseline and not any(style.color == SERIES[0] for style in result.values())
            result[arm.name] = Style(SERIES[0], "s") if plain else Style(*next(others))
    return result


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names of the points (cost, value) that no other one beats in both, by rising cost. The larger
    value is the better one.
    """
    names: list[str] = []
    for name, (_, value) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if not names or value > points[names[-1]][1]:
            names.append(name)
    return names


def pareto(group: Group, cost: Measure, looks: Mapping[str, Style], number: int) -> Chart | None:
    """The metric against a cost: means over seeds with 95 % intervals, and the Pareto front."""
    metric, points = group.metric, {}
    arms = on_one_chart(cost, [arm for arm in group.arms if cost.by_seed(arm)])
    for arm in arms:
        xs, ys = list(cost.by_seed(arm).values()), list(on_test(metric).by_seed(arm).values())
        if xs and ys:
            points[arm.name] = (
                estimate([x * cost.scale for x in xs]),
                estimate([metric.scale * y for y in ys]),
            )
    if len(points) < 2:
        return None
    means = {name: (x.mean, y.mean) for name, (x, y) in points.items()}
    best = front({name: (x, metric.signed(y)) for name, (x, y) in means.items()})
    with drawing(f"{cost.label}, {cost.unit}", metric.head(f"test {metric.label}")) as (axes, done):
        spread = [mean for mean, _ in means.values()]
        axes.set_xscale("log" if max(spread) > 4 * min(spread) > 0 else "linear")
        stairs = [means[name] for name in best]
        axes.step(
            *zip(*stairs, strict=True), where="post", color=MUTED, linestyle="--", linewidth=1.2, zorder=2
        )
        for name, (x, y) in points.items():
            axes.errorbar(
                x.mean, y.mean, xerr=x.half, yerr=y.half, color=looks[name].color, marker=looks[name].marker,
                markersize=8 if name in best else 6, capsize=2.5, elinewidth=1.1, linestyle="none", zorder=3,
            )  # fmt: skip
    title = f"{metric.title} against {cost.label}"
    caption = f"Not beaten in both (Pareto front, dashed): {', '.join(best)}.{_elsewhere(cost, group, arms)}"
    return Chart(title, done(number, title), caption)


def _elsewhere(cost: Measure, group: Group, shown: Sequence[Arm]) -> str:
    """A sentence on arms that have this cost under other conditions, and so are not in the chart."""
    names = [arm.name for arm in group.arms if cost.by_seed(arm) and not any(arm is one for one in shown)]
    what = " or ".join(cost.alike)
    return f" Left out, as their {what} differs: {', '.join(names)}." if names else ""


def curves(
    group: Group, cost: Measure, targets: Sequence[float], looks: Mapping[str, Style], number: int
) -> Chart | None:
    """The metric on validation data against the cost up to then: thin, each seed; thick, their mean."""
    metric = group.metric
    arms = on_one_chart(cost, [arm for arm in group.arms if any(_line(row, cost) for row in arm.rows)])
    lines = {arm.name: [line for row in arm.rows if (line := _line(row, cost))] for arm in arms}
    if not any(lines.values()):
        return None
    with drawing(f"{cost.label}, {cost.unit}", metric.head(f"validation {metric.label}")) as (axes, done):
        for name, seeds in lines.items():
            color = looks[name].color
            for line in seeds:
                axes.plot(*zip(*line, strict=True), color=color, linewidth=0.6, alpha=0.4)
            mean = [
                tuple(sum(values) / len(seeds) for values in zip(*points, strict=True))
                for points in zip(*seeds, strict=False)
            ]
            if mean:
                axes.plot(
                    *zip(*mean, strict=True), color=color, linewidth=1.8, marker=looks[name].marker,
                    markevery=max(1, len(mean) // 6), markersize=5,
                )  # fmt: skip
        reached = sorted(metric.signed(y) for seeds in lines.values() for line in seeds for _, y in line)
        best, poor = reached[-1], reached[len(reached) // 8]
        ends = poor - 0.15 * (best - poor), best + 0.1 * (best - poor) + 1e-3
        axes.set_ylim(*sorted(metric.signed(end) for end in ends))
        for target in targets:
            axes.axhline(metric.scale * target, color=INK, linestyle=":", linewidth=1)
    title = f"Curve to the target, {cost.label}"
    dotted = (
        f" Dotted: {', '.join(metric.head(f'{metric.scale * t:g}', ' ') for t in targets)}."
        if targets
        else ""
    )
    caption = f"Thin: each seed; thick: their mean, while all seeds trained. The start is cut off.{dotted}"
    caption += _elsewhere(cost, group, arms)
    return Chart(title, done(number, title), caption)


#: The cost of a run up to a point of its curve.
SPENT: dict[str, Callable[[Row, Sequence[float]], float | None]] = {
    "train_flops": lambda row, point: flops_until(row, point[0]),
    "train_s": seconds_at,
    "train_cpu_s": lambda row, point: cpu_until(row, point[0]),
    "energy_j": lambda row, point: joules_at(point),
}


def _line(row: Row, cost: Measure) -> list[tuple[float, float]]:
    scale = metric_of(row).scale
    points = [(SPENT[cost.id](row, point), scale * point[1]) for point in row["curve"]]
    return [(x * cost.scale, y) for x, y in points if x is not None]


def memory(
    groups: Sequence[Group], measure: Measure, looks: Mapping[str, Style], number: int
) -> Chart | None:
    """Bytes against the number of layers with weights, for arms with nets of several depths."""
    lines: dict[str, dict[int, list[float]]] = {}
    for arm in (arm for group in groups for arm in group.arms):
        for row in arm.rows:
            layers, size = depth(row), measure.read(row)
            if layers is not None and size is not None:
                lines.setdefault(arm.name, {}).setdefault(layers, []).append(size * measure.scale)
    lines = {name: line for name, line in lines.items() if len(line) > 1}
    if not lines:
        return None
    from matplotlib.ticker import MaxNLocator

    with drawing("layers with weights", f"{measure.label}, {measure.unit}") as (axes, done):
        for name, line in lines.items():
            points = [(layers, sum(sizes) / len(sizes)) for layers, sizes in sorted(line.items())]
            axes.plot(
                *zip(*points, strict=True), color=looks[name].color, marker=looks[name].marker, linewidth=1.6
            )
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    title = f"Memory against depth: {measure.label}"
    return Chart(title, done(number, title), "Counted for one training step at the batch size of the runs.")


def depth(row: Row) -> int | None:
    """Layers with weights of a net whose config has a list of widths; None for other nets."""
    net: Values = row["config"]["net"]
    widths = net.get("hidden") or net.get("channels")
    return len(widths) + 1 if isinstance(widths, list) else None


@contextmanager
def drawing(x: str, y: str) -> Iterator[tuple[Axes, Callable[[int, str], str]]]:
    """Axes, and a function that returns their SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(RC):
        figure = Figure(figsize=(5.2, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.set_xlabel(x)
        axes.set_ylabel(y)

        def done(number: int, label: str) -> str:
            file = io.StringIO()
            with mpl.rc_context(RC):
                figure.savefig(
                    file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
                )
            return inline(file.getvalue(), f"chart{number}-", label)

        yield axes, done


def inline(svg: str, prefix: str, label: str) -> str:
    """The SVG as an element of the page: with unique ids, the page's colors and font, and a label."""
    root = ElementTree.fromstring(svg.encode())
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{SVG}}}")
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            element.set(key.removeprefix(f"{{{XLINK}}}"), _adopted(key, value, prefix))
    for size in ("width", "height"):
        del root.attrib[size]
    root.attrib |= {"role": "img", "aria-label": label}
    return ElementTree.tostring(root, encoding="unicode")


def _adopted(key: str, value: str, prefix: str) -> str:
    if key == "id":
        return prefix + value
    if value.startswith("#"):
        return f"#{prefix}{value[1:]}" if key.endswith("href") else _colored(value)
    value = value.replace("url(#", f"url(#{prefix}")
    if "font:" in value:
        size = value.partition("font:")[2].split()[0]
        value = value.replace(value.partition("font:")[2].partition(";")[0], f" {size} var(--font)")
    return _colored(value)


def _colored(value: str) -> str:
    for color, variable in VARIABLES.items():
        value = value.replace(color, f"var({variable})")
    return value
