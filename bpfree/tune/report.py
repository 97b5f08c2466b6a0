"""The pictures of a search, drawn again from its summary: ``python -m bpfree.tune report DIR``."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from bpfree._errors import BadValue
from bpfree.bench.files import Mapped
from bpfree.bench.metric import metric_in
from bpfree.tune.plots import draw_study
from bpfree.tune.summary import SCHEMA

#: How a summary describes a range and a choice.
RANGE = re.compile(r"(\S+) to (\S+?)(, log scale)?")
CHOICE = "one of "


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bpfree.tune report",
        description="Draw the pictures of searches, as SVG files in DIR/plots, from DIR/summary.json.",
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="--out of a search")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the pictures of one search here")
    arguments = parser.parse_args(argv)
    if arguments.out is not None and len(arguments.folders) > 1:
        raise BadValue("--out: names one folder, so draw one search at a time")
    for folder in arguments.folders:
        for path in redraw(folder, arguments.out):
            print(path)  # noqa: T201 (the output of the command)
    return 0


def redraw(folder: Path, out: Path | None = None) -> list[Path]:
    """Draw the pictures of all arms of a search from its summary.

    Args:
        folder: Folder with ``summary.json``.
        out: Folder for the pictures; by default ``plots`` in ``folder``.

    Returns:
        The SVG files.

    Raises:
        BadValue: If the summary is missing or is not the summary of a search, or a picture cannot be written.
    """
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadValue(f"{path}: cannot be read ({error}): give the folder that a search wrote") from None
    if not isinstance(summary, dict) or summary.get("schema") != SCHEMA:
        raise BadValue(f"{path}: is not the summary of a search, or another version of bpfree.tune wrote it")
    try:
        studies = [(arm, study_of(arm, summary["sampler"]["name"] == "grid")) for arm in summary["arms"]]
    except (KeyError, TypeError, ValueError) as error:
        raise BadValue(f"{path}: is not a complete summary ({error!r}): was the file edited?") from None
    target = folder / "plots" if out is None else out
    try:
        return [
            picture
            for arm, study in studies
            for picture in draw_study(
                study, arm["label"], target, arm.get("importance", {}), metric_in(arm).label
            )
        ]
    except OSError as error:
        raise BadValue(f"{target}: pictures cannot be written there: {error}") from None


def study_of(arm: Mapped, grid: bool) -> optuna.Study:
    """An arm's study, in memory, with the trials of its summary under their old numbers.

    Args:
        arm: The arm in the summary of a search.
        grid: Whether the search was on a grid.
    """
    trials = {trial["number"]: trial for trial in arm["history"]}
    distributions = {
        name: _distribution(text, [t["params"][name] for t in trials.values() if name in t["params"]], grid)
        for name, text in arm["space"].items()
    }
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    direction: Literal["maximize", "minimize"] = (
        "maximize" if metric_in(arm).greater_is_better else "minimize"
    )
    study = optuna.create_study(direction=direction)
    for number in range(max(trials, default=-1) + 1):
        study.add_trial(_trial(trials.get(number, {}), distributions))
    return study


def _trial(trial: Mapped, distributions: dict[str, BaseDistribution]) -> FrozenTrial:
    if trial.get("state") == "complete":
        return create_trial(value=trial["value"], params=trial["params"], distributions=distributions)
    # No picture shows it, but it takes a number.
    return create_trial(state=TrialState.FAIL)


def _distribution(text: str, values: Sequence[Any], grid: bool) -> BaseDistribution:
    """The distribution that a summary describes by ``text``; it contains ``values``."""
    if text.startswith(CHOICE):
        known = {str(value): value for value in values}
        choices = [known.get(name, name) for name in text.removeprefix(CHOICE).split(", ")]
        return CategoricalDistribution([*choices, *(v for v in known.values() if v not in choices)])
    match = RANGE.fullmatch(text)
    if match is None:
        raise ValueError(f"unknown range {text!r}")
    if grid:
        return CategoricalDistribution(sorted(set(values)))
    # The ends are rounded in the text.
    low, high = min([float(match[1]), *values]), max([float(match[2]), *values])
    if values and all(isinstance(value, int) for value in values):
        return IntDistribution(int(low), int(high), log=match[3] is not None)
    return FloatDistribution(low, high, log=match[3] is not None)
