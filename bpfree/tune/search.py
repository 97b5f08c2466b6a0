"""One search from its plan to its files: studies, trials, summary, pictures, winning config."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.trial import Trial
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from bpfree._errors import BadValue
from bpfree.bench.metric import common, metric_in
from bpfree.bench.terminal import console as make_console
from bpfree.bench.terminal import label_column, visible
from bpfree.tune.plan import Plan
from bpfree.tune.plots import draw, importance, no_importance
from bpfree.tune.storage import hide_password, open_storage, turn
from bpfree.tune.study import ArmStudy
from bpfree.tune.summary import summarize, winning_config, write_json, write_yaml
from bpfree.tune.worker import Watcher, Worker

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
    """Search until every arm has its trials, or go on with a search; write what it found into ``folder``.

    Args:
        plan: What to search.
        trials: Trials of each arm.
        folder: For the journal, checkpoints, ``summary.json``, ``winner.yaml`` and ``plots``.
        console: Where the table goes.
        url: A database for the studies.
        workers: Trials at once.
        timeout: Seconds.
        checkpoint_s: Seconds between checkpoints within a trial.

    Returns:
        0, or 1 if not all trials are finished.

    Raises:
        BadValue: If the storage or the folder cannot be used, or a trial cannot do what the config asks.
        TrialFailed: If a trial raised an error.
    """
    storage = open_storage(folder, url)
    try:
        with turn(folder):
            studies = [ArmStudy(plan, arm, storage, trials) for arm in plan.arms if arm.space]
        with _watching(studies, trials) as watcher:
            done = Worker(studies, folder, workers, checkpoint_s, watcher).run(timeout)
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


def _write(plan: Plan, studies: Sequence[ArmStudy], folder: Path) -> dict[str, Any]:
    summary = summarize(plan, studies)
    for found, study in zip(summary["arms"], studies, strict=True):
        found["importance"] = importance(study)
        if reason := no_importance(study):
            found["no_importance"] = reason
        found["plots"] = [str(path.relative_to(folder)) for path in draw(study, folder / "plots")]
    write_json(folder / "summary.json", summary)
    config = winning_config(plan, summary)
    if config is not None:
        counts = sorted({found["trials"] for found in summary["arms"]})
        edges = [
            f"{found['label']} ({', '.join(found['edge'])})" for found in summary["arms"] if found["edge"]
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
def _watching(studies: Sequence[ArmStudy], trials: int) -> Iterator[Watcher]:
    """A bar in a terminal, a line per trial elsewhere; both on stderr."""
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

        yield Watcher(finished=finished)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _show(summary: dict[str, Any], trials: int, console: Console) -> None:
    title = f"{summary['name']}: {trials} trials for each arm, validation data, seeds {summary['seeds']}"
    table = Table(title=Text(visible(title)))
    metrics = [metric_in(found) for found in summary["arms"]]
    shared = common(metrics)
    validation = f"validation {'metric' if shared is None else shared.head(shared.label, ' ')}"
    for name in ("arm", "trials", "pruned", "diverged", "seconds", validation, "winner"):
        table.add_column(name, justify="left" if name in ("arm", "winner") else "right", overflow="fold")
    for found, metric in zip(summary["arms"], metrics, strict=True):
        best = found.get("best")
        value = metric.written(metric.scale * best["value"]) if best else "none"
        settings = [
            f"{name} {_short(value)}{' (edge)' if name in found['edge'] else ''}"
            for name, value in (best["params"] if best else {}).items()
        ]
        cells = (
            found["label"],
            str(found["trials"]),
            str(found["pruned"]),
            str(found["diverged"]),
            f"{found['seconds']:.1f}",
            value if shared or not best else f"{value} ({metric.head(metric.label)})",
            ", ".join(settings),
        )
        table.add_row(*(Text(visible(cell)) for cell in cells))
    console.print(table)
    edges = [found["label"] for found in summary["arms"] if found.get("edge")]
    if edges:
        text = "At the edge of their space, beyond which a better value may lie"
        console.print(Text(visible(f"{text}: {', '.join(edges)}"), "yellow"), soft_wrap=True)
    if summary["not_searched"]:
        left = ", ".join(summary["not_searched"])
        console.print(Text(visible(f"Nothing to search, left as they are: {left}")), soft_wrap=True)
    if len({found["trials"] for found in summary["arms"]}) > 1 or summary["arms"][0]["trials"] < trials:
        counts = ", ".join(f"{found['label']} {found['trials']}" for found in summary["arms"])
        text = f"Not finished, and no fair comparison yet: {counts} of {trials} trials"
        console.print(Text(visible(text), "yellow"), soft_wrap=True)
