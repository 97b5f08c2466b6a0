"""What is read from a row and compared: its metric, and what it cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from bpfree.bench.arms import Arm, Group, Run, run_of
from bpfree.bench.conditions import CONDITIONS, several, unlike
from bpfree.bench.metric import RowMetric, metric_of
from bpfree.bench.results import Row, figure
from bpfree.bench.statistics import MIN_SEEDS, Effect, Verdict, holm, paired

#: The condition that a comparison of two results, before and after a change, must leave aside.
VERSION = "version"


@dataclass(frozen=True)
class Measure:
    """A figure of a row.

    Attributes:
        id: Its name in a comparison.
        label: How it is called in a report.
        unit: Of the figure as it is shown.
        scale: From the row's unit (SI) to ``unit``.
        read: The figure of a row in the row's unit; None where it was not measured.
        ratio: Whether values are compared by their ratio; otherwise by their difference.
        greater_is_better: Whether the larger value is the better one.
        counted: Counted, not sampled: where all seeds agree, they need not be many.
        alike: The `CONDITIONS` that two rows must share for a comparison and, but for the version, the rows
            of an arm for a mean.
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
        """The figure of each seed that has it, in the row's unit."""
        found = {run_of(row): self.read(row) for row in arm.rows}
        return {seed: value for seed, value in found.items() if value is not None}

    def averaged(self, arm: Arm) -> list[float]:
        """The figures that a mean is taken of; none where they came about under different conditions."""
        return list(self.by_seed(arm).values()) if self.uniform(arm) else []

    def uniform(self, arm: Arm) -> bool:
        """Whether the rows of an arm that have the figure share its conditions, the version left aside."""
        having = Arm(arm.name, [row for row in arm.rows if self.read(row) is not None])
        return all(len(several(having, name)) <= 1 for name in self.alike if name != VERSION)

    @property
    def units(self) -> Sequence[tuple[str, float]]:
        """The units in which it may be shown, the largest first."""
        own = [(self.unit, self.scale)]
        return next((units for end, units in PREFIXES.items() if self.unit.endswith(end)), own)

    def better(self, effect: Effect) -> bool:
        """Whether the first of the two that were compared is the better one."""
        return self._ahead(effect) > 0

    def worse(self, effect: Effect) -> bool:
        """Whether the first of the two that were compared is the worse one."""
        return self._ahead(effect) < 0

    def _ahead(self, effect: Effect) -> float:
        distance = effect.value - (1.0 if self.ratio else 0.0)
        return distance if self.greater_is_better else -distance


PREFIXES = {
    "FLOP": (("TFLOP", 1e-12), ("GFLOP", 1e-9), ("MFLOP", 1e-6)),
    "iB": (("GiB", 2**-30), ("MiB", 2**-20), ("KiB", 2**-10)),
}


def readable(measure: Measure, arms: Iterable[Arm]) -> Measure:
    """The same measure in the unit in which the smallest of these figures is at least 1, if there is one."""
    smallest = min((value for arm in arms for value in measure.by_seed(arm).values()), default=1.0)
    units = measure.units
    unit, scale = next((found for found in units if smallest * found[1] >= 1), units[-1])
    return replace(measure, unit=unit, scale=scale)


def in_one_go(row: Row, *path: str) -> float | None:
    """A time or an energy; None if the run was stopped and resumed, as the machine was then another one, and
    if it is negative, which a clock that was set back gives."""
    value = figure(row, *path) if row.get("segments", 1) == 1 else None
    return None if value is None or value < 0 else value


def train_flops(row: Row) -> float | None:
    """FLOPs of all the training; of a row without them, those of its steps, where all its steps are alike."""
    total = figure(row, "flops", "train_total")
    step, steps = figure(row, "flops", "train_step"), figure(row, "budget", "steps")
    if total is None and step is not None and steps is not None and row["budget"]["stages"] == 1:
        return step * steps
    return total


def train_seconds(row: Row) -> float | None:
    """Seconds of the training steps by the clock."""
    return in_one_go(row, "time", "train_s")


def cpu_seconds(row: Row) -> float | None:
    """Seconds that the processor computed in training, whatever else it did meanwhile; None for a GPU's."""
    on_cpu = str(row["config"].get("device", "cpu")) == "cpu"
    return in_one_go(row, "time", "train_cpu_s") if on_cpu else None


def energy(row: Row) -> float | None:
    """Joules of the training steps, gross, of the device that trained; None where none were metered."""
    gpu = in_one_go(row, "energy", "gpu_gross_j")
    return in_one_go(row, "energy", "cpu_gross_j") if gpu is None else gpu


def _at(*path: str) -> Callable[[Row], float | None]:
    return lambda row: figure(row, *path)


def on_test(metric: RowMetric) -> Measure:
    """A metric on the test data: a share is compared by differences, another one by ratios."""
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
        """Seeds with which a verdict can be expected, where there is none; None if no spread is known."""
        undecided = self.effect.verdict is Verdict.INCONCLUSIVE
        return max(self.effect.needed, self.effect.n + 1) if undecided and self.effect.needed else None

    @property
    def says(self) -> str:
        """The verdict and, where there is none, what is missing."""
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

    Rows are paired by seed where they share the conditions of the measure, those ``aside`` excepted: times
    and energies within one version and one machine, energies within one scope. Metrics, FLOPs and bytes
    are compared across machines, which change no more than the last bits of a metric, and across versions,
    of which `left_out` tells, as it does of all that is not compared.
    """
    pairs, found = list(pairs), []
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
        found += [replace(c, effect=effect) for c, effect in zip(family, adjusted, strict=True)]
    return found


def _common(measure: Measure, arm: Arm, other: Arm, aside: Sequence[str]) -> dict[Run, list[str]]:
    """The runs whose figure both arms have, each with the conditions that the two rows do not share."""
    ours, theirs = ({run_of(row): row for row in one.rows} for one in (arm, other))
    both = measure.by_seed(arm).keys() & measure.by_seed(other).keys()
    names = [name for name in measure.alike if name not in aside]
    return {run: unlike(ours[run], theirs[run], names) for run in ours if run in both}


def left_out(pairs: Iterable[Pair], aside: Sequence[str] = ()) -> list[str]:
    """In sentences, what `compare` leaves out although both arms have it, and what it compares across
    versions.
    """
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
    """Which means are taken over several versions, and which are not shown, in sentences."""
    found = []
    for title, arm in ((group.title, arm) for group in groups for arm in group.arms):
        if len(versions := several(arm, "version")) > 1:
            found.append(f"{title}: {arm.name} is a mean over several versions: {'; '.join(versions)}")
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
                found.append(f"{title}: {shown}, the {name} differs: {'; '.join(values)}")
    return found


def on_one_chart(measure: Measure, arms: Sequence[Arm]) -> list[Arm]:
    """The most arms that share the conditions of the measure, each of them one mean; at a draw the first."""
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
