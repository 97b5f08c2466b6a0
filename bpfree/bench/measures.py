"""Measures: the values of a row that are compared, which are its metric and its costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from bpfree.bench.arms import Arm, Group, run_of
from bpfree.bench.conditions import CONDITIONS, several, unlike
from bpfree.bench.metric import RowMetric, metric_of
from bpfree.bench.results import Row, figure
from bpfree.bench.statistics import MIN_SEEDS, Effect, Run, Verdict, holm, paired

#: The condition that a comparison of results before and after a change ignores.
VERSION = "version"


@dataclass(frozen=True)
class Measure:
    """A value that can be read from a row.

    Attributes:
        id: Its name in a comparison.
        label: Its name in a report.
        unit: Unit of the value in tables.
        scale: Factor from the row's unit (SI) to ``unit``.
        read: Returns the value of a row in the row's unit; None where it was not measured.
        ratio: Whether values are compared by their ratio; otherwise by their difference.
        greater_is_better: Whether the larger value is the better one.
        counted: Whether the value is counted, not sampled: if all seeds agree, one is enough.
        alike: The `CONDITIONS` in which two rows must agree for a comparison and, except for the version, the
            rows of an arm for a mean.
    """

    id: str
    label: str
    unit: str
    scale: float
    read: Callable[[Row], float | None]
    ratio: bool = True
    greater_is_better: bool = False
    counted: bool = False
    alike: tuple[str, ...] = ()

    def by_seed(self, arm: Arm) -> dict[Run, float]:
        """The value of each run that has it, in the row's unit."""
        values = {run_of(row): self.read(row) for row in arm.rows}
        return {seed: value for seed, value in values.items() if value is not None}

    def averaged(self, arm: Arm) -> list[float]:
        """The values for a mean; none if they were measured under different conditions."""
        return list(self.by_seed(arm).values()) if self.uniform(arm) else []

    def uniform(self, arm: Arm) -> bool:
        """Whether the rows of an arm that have the value agree in its conditions, except for the version."""
        having = Arm(arm.name, [row for row in arm.rows if self.read(row) is not None])
        return all(len(several(having, name)) <= 1 for name in self.alike if name != VERSION)

    @property
    def units(self) -> Sequence[tuple[str, float]]:
        """The possible units, the largest first."""
        fixed = [(self.unit, self.scale)]
        return next((units for end, units in PREFIXES.items() if self.unit.endswith(end)), fixed)

    def better(self, effect: Effect) -> bool:
        """Whether the first of the two compared arms is the better one."""
        return self._ahead(effect) > 0

    def worse(self, effect: Effect) -> bool:
        """Whether the first of the two compared arms is the worse one."""
        return self._ahead(effect) < 0

    def _ahead(self, effect: Effect) -> float:
        distance = effect.value - (1.0 if self.ratio else 0.0)
        return distance if self.greater_is_better else -distance


PREFIXES = {
    "FLOP": (("TFLOP", 1e-12), ("GFLOP", 1e-9), ("MFLOP", 1e-6)),
    "iB": (("GiB", 2**-30), ("MiB", 2**-20), ("KiB", 2**-10)),
}


def readable(measure: Measure, arms: Iterable[Arm]) -> Measure:
    """The same measure in the largest unit in which all values of these arms are at least 1, if any."""
    smallest = min((value for arm in arms for value in measure.by_seed(arm).values()), default=1.0)
    units = measure.units
    unit, scale = next((candidate for candidate in units if smallest * candidate[1] >= 1), units[-1])
    return replace(measure, unit=unit, scale=scale)


def uninterrupted(row: Row, *path: str) -> float | None:
    """A time or an energy; None if the run was resumed, maybe on another machine, or if the value is
    negative, which happens when a clock is set back.
    """
    value = figure(row, *path) if row.get("segments", 1) == 1 else None
    return None if value is None or value < 0 else value


def train_flops(row: Row) -> float | None:
    """FLOPs of the training; of an old row with one stage, those of a step times the number of steps."""
    total = figure(row, "flops", "train_total")
    step, steps = figure(row, "flops", "train_step"), figure(row, "budget", "steps")
    if total is None and step is not None and steps is not None and row["budget"]["stages"] == 1:
        return step * steps
    return total


def train_seconds(row: Row) -> float | None:
    """Wall-clock seconds of the training steps."""
    return uninterrupted(row, "time", "train_s")


def cpu_seconds(row: Row) -> float | None:
    """CPU seconds of the training steps; None for training on a GPU."""
    on_cpu = str(row["config"].get("device", "cpu")) == "cpu"
    return uninterrupted(row, "time", "train_cpu_s") if on_cpu else None


def energy(row: Row) -> float | None:
    """Gross joules of the training steps on the device that trained; None if they were not metered."""
    gpu = uninterrupted(row, "energy", "gpu_gross_j")
    return uninterrupted(row, "energy", "cpu_gross_j") if gpu is None else gpu


def _at(*path: str) -> Callable[[Row], float | None]:
    return lambda row: figure(row, *path)


def on_test(metric: RowMetric) -> Measure:
    """The measure of a metric on test data: shares are compared by differences, others by ratios."""
    return Measure(
        metric.name,
        f"test {metric.label}",
        metric.unit,
        metric.scale,
        lambda row: metric.test(row) if metric_of(row) == metric else None,
        ratio=not metric.share,
        greater_is_better=metric.greater_is_better,
    )


#: Costs by id.
COSTS = {
    measure.id: measure
    for measure in (
        Measure("train_s", "training time", "s", 1, train_seconds, alike=(VERSION, "machine")),
        Measure("train_cpu_s", "CPU time of training", "s", 1, cpu_seconds, alike=(VERSION, "machine")),
        Measure("energy_j", "training energy", "J", 1, energy, alike=(VERSION, "machine", "scope")),
        Measure("train_flops", "training FLOPs", "TFLOP", 1e-12, train_flops, counted=True),
        Measure("step_flops", "FLOPs of a step", "GFLOP", 1e-9, _at("flops", "train_step"), counted=True),
        Measure(
            "saved_bytes", "saved for backward", "MiB", 2**-20, _at("memory", "saved_bytes"), counted=True
        ),
        Measure("peak_alloc", "allocator peak", "MiB", 2**-20, _at("memory", "peak_alloc"), counted=True),
    )
}


@dataclass(frozen=True)
class Comparison:
    """An arm against another one in one measure."""

    group: str
    arm: str
    against: str
    measure: Measure
    effect: Effect

    @property
    def wins(self) -> bool:
        """The arm is better, and by more than a negligible amount."""
        return self.effect.verdict is Verdict.DIFFERENT and self.measure.better(self.effect)

    @property
    def loses(self) -> bool:
        """The arm is worse, and by more than a negligible amount."""
        return self.effect.verdict is Verdict.DIFFERENT and not self.measure.better(self.effect)

    @property
    def seeds_needed(self) -> int | None:
        """Seeds with which a verdict is expected, where it is inconclusive; None if the spread is unknown."""
        undecided = self.effect.verdict is Verdict.INCONCLUSIVE
        return max(self.effect.needed, self.effect.n + 1) if undecided and self.effect.needed else None

    @property
    def text(self) -> str:
        """The verdict; where it is inconclusive, with the seeds that are needed."""
        if self.effect.verdict is not Verdict.INCONCLUSIVE:
            return str(self.effect.verdict)
        needed = f"about {self.seeds_needed}" if self.seeds_needed else f"at least {MIN_SEEDS}"
        seeds = "1 seed" if self.effect.n == 1 else f"{self.effect.n} seeds"
        return f"{self.effect.verdict}: {seeds}, {needed} needed"


def short(comparison: Comparison) -> str:
    """An effect with its interval: a difference in the measure's unit, or a ratio."""
    effect, scale = comparison.effect, 1.0 if comparison.effect.ratio else comparison.measure.scale
    pattern = "×{:.3f}" if effect.ratio else "{:+.2f}"
    text = pattern.format(effect.value * scale)
    if effect.interval is None or effect.exact:
        return text
    low, high = (pattern.removeprefix("×").format(end * scale) for end in effect.interval)
    return f"{text} [{low}, {high}]"


Pair = tuple[str, Arm, Arm]


def measures_of(pairs: Iterable[Pair]) -> list[Measure]:
    """The metrics of these arms, then the costs."""
    return [
        *(on_test(metric) for metric in dict.fromkeys(arm.metric for _, arm, _ in pairs)),
        *COSTS.values(),
    ]


def compare(
    pairs: Iterable[Pair], measures: Sequence[Measure] | None = None, aside: Sequence[str] = ()
) -> list[Comparison]:
    """Compare arms ``(group, arm, other)`` in `measures_of` them, or in ``measures``; the p values of one
    measure are Holm's family.

    Rows are paired by seed where they agree in the conditions of the measure, except for those in ``aside``:
    times and energies within one version and one machine, energies within one scope. Metrics, FLOPs and bytes
    are compared across machines, which change only the last bits of a metric, and across versions. `left_out`
    lists comparisons across versions, and values that are not compared.
    """
    pairs, comparisons = list(pairs), []
    for measure in measures_of(pairs) if measures is None else measures:
        family = []
        for group, arm, other in pairs:
            runs = [run for run, lacking in _common(measure, arm, other, aside).items() if not lacking]
            ours, theirs = measure.by_seed(arm), measure.by_seed(other)
            effect = paired(
                {run: ours[run] for run in runs},
                {run: theirs[run] for run in runs},
                measure.ratio,
                measure.counted,
            )
            if effect is not None:
                family.append(Comparison(group, arm.name, other.name, measure, effect))
        adjusted = holm([comparison.effect for comparison in family])
        comparisons += [replace(c, effect=effect) for c, effect in zip(family, adjusted, strict=True)]
    return comparisons


def _common(measure: Measure, arm: Arm, other: Arm, aside: Sequence[str]) -> dict[Run, list[str]]:
    """The runs of which both arms have the value, each with the conditions in which the two rows differ."""
    ours, theirs = ({run_of(row): row for row in one.rows} for one in (arm, other))
    both = measure.by_seed(arm).keys() & measure.by_seed(other).keys()
    names = [name for name in measure.alike if name not in aside]
    return {run: unlike(ours[run], theirs[run], names) for run in ours if run in both}


def left_out(pairs: Iterable[Pair], aside: Sequence[str] = ()) -> list[str]:
    """Sentences about values of both arms that `compare` does not compare, or compares across versions."""
    arms: dict[tuple[str, str, str], list[str]] = {}
    for group, arm, other in pairs:
        for text in _of_pair(arm, other, aside):
            arms.setdefault((group, other.name, text), []).append(arm.name)
    return [
        f"{group}: {', '.join(names)} against {other}: {text}" for (group, other, text), names in arms.items()
    ]


def _of_pair(arm: Arm, other: Arm, aside: Sequence[str]) -> Iterator[str]:
    if not {run_of(row) for row in arm.rows} & {run_of(row) for row in other.rows}:
        yield f"not compared, no seed in common ({_seeds(arm)}; {_seeds(other)})"
        return
    labels: dict[tuple[str, str], list[str]] = {}
    for measure in measures_of([("", arm, other)]):
        common = _common(measure, arm, other, aside)
        for name in CONDITIONS:
            if runs := [run for run, lacking in common.items() if name in lacking]:
                why = f"for {len(runs)} of {len(common)} seeds, {_differs(name, arm, other, runs)}"
                labels.setdefault(("not compared", why), []).append(measure.label)
        if VERSION not in (*measure.alike, *aside):
            versions = _common(replace(measure, alike=(VERSION,)), arm, other, ())
            if runs := [run for run, lacking in versions.items() if lacking]:
                why = f"although {_differs(VERSION, arm, other, runs)}"
                labels.setdefault(("compared", why), []).append(measure.label)
    for (what, why), of in labels.items():
        yield f"{what} in {', '.join(of)} {why}"


def _differs(name: str, arm: Arm, other: Arm, runs: Sequence[Run]) -> str:
    rows = [row for one in (arm, other) for row in one.rows if run_of(row) in runs]
    return f"the {name} differs: {'; '.join(dict.fromkeys(CONDITIONS[name](row) for row in rows))}"


def _seeds(arm: Arm) -> str:
    return f"{arm.name} has {', '.join(map(str, sorted({row['seed'] for row in arm.rows})))}"


def mixed(groups: Iterable[Group]) -> list[str]:
    """Sentences about means over several versions, and about means that are not shown."""
    notes = []
    for title, arm in ((group.title, arm) for group in groups for arm in group.arms):
        if len(versions := several(arm, "version")) > 1:
            notes.append(f"{title}: {arm.name} is a mean over several versions: {'; '.join(versions)}")
        for name in CONDITIONS:
            labels = [
                measure.label
                for measure in COSTS.values()
                if name in measure.alike
                and name != VERSION
                and measure.by_seed(arm)
                and not measure.averaged(arm)
            ]
            if labels and len(values := several(arm, name)) > 1:
                shown = f"{', '.join(labels)} of {arm.name} not shown as a mean"
                notes.append(f"{title}: {shown}, the {name} differs: {'; '.join(values)}")
    return notes


def on_one_chart(measure: Measure, arms: Sequence[Arm]) -> list[Arm]:
    """The largest set of arms whose rows agree in the conditions of the measure; of equal ones the first."""
    by_conditions: dict[tuple[tuple[str, ...], ...], list[Arm]] = {}
    for arm in arms:
        if measure.uniform(arm):
            key = tuple(tuple(sorted(several(arm, name))) for name in measure.alike)
            by_conditions.setdefault(key, []).append(arm)
    return max(by_conditions.values(), key=len, default=[])


def against_baseline(groups: Iterable[Group]) -> list[Pair]:
    """Every arm with the baseline of its group."""
    return [
        (group.title, arm, group.baseline)
        for group in groups
        for arm in group.arms
        if group.baseline is not None and arm is not group.baseline
    ]
