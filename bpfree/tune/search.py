"""Runs a search and writes its summary, plots and winning config."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from optuna.exceptions import StorageInternalError
from optuna.trial import Trial
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from bpfree._errors import BadValue
from bpfree.bench.files import Mapped
from bpfree.bench.metric import common, metric_in
from bpfree.bench.terminal import console as make_console
from bpfree.bench.terminal import label_column, visible
from bpfree.tune.plan import Plan
from bpfree.tune.plots import draw, importance, no_importance
from bpfree.tune.storage import hide_password, open_storage, turn
from bpfree.tune.study import ArmStudy
from bpfree.tune.summary import summarize, winning_config, write_json, write_yaml
from bpfree.tune.worker import Callbacks, Worker

COMMENT = """\
{name} with the settings that won a search on validation data: {trials} trials for each arm, sampler
{sampler}, pruner {pruner}, seeds {seeds}; the summary beside this file has every trial.{edges}"""


def search(
    plan: Plan,
    trials: int,
    folder: Path,
    console: Console,
    url: str | None = None,
    workers: int = 1,
    timeout: float | None = None,
    checkpoint_s: float = 20.0,
) -> int:
    """Search until every arm has its trials, or continue a search; write the results into ``folder``.

    Args:
        plan: The plan of the search.
        trials: Trials of each arm.
        folder: For the journal, checkpoints, ``summary.json``, ``winner.yaml`` and ``plots``.
        console: Prints the table.
        url: A database for the studies.
        workers: Trials at once.
        timeout: Seconds.
        checkpoint_s: Seconds between checkpoints within a trial.

    Returns:
        0, or 1 if not all trials are finished.

    Raises:
        BadValue: If the storage or the folder cannot be used, or a setting of a trial is bad.
        TrialFailed: If a trial raised an error.
    """
    storage = open_storage(folder, url)
    try:
        with turn(folder):
            studies = [ArmStudy(plan, arm, storage, trials) for arm in plan.arms if arm.space]
        with _progress_display(studies, trials) as callbacks:
            done = Worker(studies, folder, workers, checkpoint_s, callbacks).run(timeout)
        summary = _write(plan, studies, folder)
    except OSError as error:
        raise BadValue(f"{folder}: cannot be written: {error}") from None
    except StorageInternalError as error:
        reason = hide_password(" ".join(str(error).split()), url)
        raise BadValue(f"the storage of the study failed: {reason}") from None
    _show(summary, trials, console)
    if workers > 1:
        console.print(f"{workers} trials ran at once: the seconds are rough")
    console.print(Text(f"winner.yaml, summary.json, plots: {visible(str(folder))}"), soft_wrap=True)
    return 0 if done else 1


def _write(plan: Plan, studies: Sequence[ArmStudy], folder: Path) -> Mapped:
    summary = summarize(plan, studies)
    for of_arm, study in zip(summary["arms"], studies, strict=True):
        of_arm["importance"] = importance(study)
        if reason := no_importance(study):
            of_arm["no_importance"] = reason
        of_arm["plots"] = [str(path.relative_to(folder)) for path in draw(study, folder / "plots")]
    write_json(folder / "summary.json", summary)
    config = winning_config(plan, summary)
    if config is not None:
        counts = sorted({of_arm["trials"] for of_arm in summary["arms"]})
        edges = [
            f"{of_arm['label']} ({', '.join(of_arm['edge'])})" for of_arm in summary["arms"] if of_arm["edge"]
        ]
        comment = COMMENT.format(
            name=plan.name,
            trials=" or ".join(map(str, counts)),
            sampler=plan.tune.sampler,
            pruner=plan.tune.pruner,
            seeds=plan.tune.seeds,
            edges=f"\nAt the edge of its space: {'; '.join(edges)}." if edges else "",
        )
        write_yaml(folder / "winner.yaml", config, comment)
    return summary


@contextmanager
def _progress_display(studies: Sequence[ArmStudy], trials: int) -> Iterator[Callbacks]:
    """Callbacks that show progress on stderr: a bar in a terminal, otherwise a line per trial."""
    screen = make_console(stderr=True)
    columns = (label_column(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        tasks = {
            id(s): bar.add_task(visible(s.arm.label), total=trials, completed=s.finished()) for s in studies
        }

        def finished(study: ArmStudy, trial: Trial, outcome: str) -> None:
            bar.update(tasks[id(study)], completed=study.finished())
            if not screen.is_terminal:
                shown = ", ".join(f"{k} {_short(v)}" for k, v in trial.params.items())
                line = f"{study.arm.label}, trial {trial.number} ({shown}): {outcome}"
                screen.print(Text(visible(line)), soft_wrap=True)

        yield Callbacks(finished=finished)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _show(summary: Mapped, trials: int, console: Console) -> None:
    title = f"{summary['name']}: {trials} trials for each arm, validation data, seeds {summary['seeds']}"
    table = Table(title=Text(visible(title)))
    metrics = [metric_in(of_arm) for of_arm in summary["arms"]]
    shared = common(metrics)
    validation = f"validation {'metric' if shared is None else shared.head(shared.label, ' ')}"
    for name in ("arm", "trials", "pruned", "diverged", "seconds", validation, "winner"):
        table.add_column(name, justify="left" if name in ("arm", "winner") else "right", overflow="fold")
    for of_arm, metric in zip(summary["arms"], metrics, strict=True):
        best = of_arm.get("best")
        value = metric.written(metric.scale * best["value"]) if best else "none"
        settings = [
            f"{name} {_short(value)}{' (edge)' if name in of_arm['edge'] else ''}"
            for name, value in (best["params"] if best else {}).items()
        ]
        cells = (
            of_arm["label"],
            str(of_arm["trials"]),
            str(of_arm["pruned"]),
            str(of_arm["diverged"]),
            f"{of_arm['seconds']:.1f}",
            value if shared or not best else f"{value} ({metric.head(metric.label)})",
            ", ".join(settings),
        )
        table.add_row(*(Text(visible(cell)) for cell in cells))
    console.print(table)
    edges = [of_arm["label"] for of_arm in summary["arms"] if of_arm.get("edge")]
    if edges:
        text = "At the edge of their space; there may be a better value beyond it"
        console.print(Text(visible(f"{text}: {', '.join(edges)}"), "yellow"), soft_wrap=True)
    if summary["not_searched"]:
        unsearched = ", ".join(summary["not_searched"])
        console.print(Text(visible(f"Nothing to search, settings unchanged: {unsearched}")), soft_wrap=True)
    if len({of_arm["trials"] for of_arm in summary["arms"]}) > 1 or summary["arms"][0]["trials"] < trials:
        counts = ", ".join(f"{of_arm['label']} {of_arm['trials']}" for of_arm in summary["arms"])
        text = f"Not finished, so the comparison is not fair: {counts} of {trials} trials"
        console.print(Text(visible(text), "yellow"), soft_wrap=True)
