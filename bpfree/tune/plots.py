"""Plots of a search: the best value over trials, slices of the settings, and their importances."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import optuna
from optuna.trial import TrialState

from bpfree.trainers import Choice
from bpfree.tune.study import ArmStudy

#: Complete trials that importances need.
MIN_TRIALS = 10


def draw(study: ArmStudy, folder: Path) -> list[Path]:
    """Write SVG plots of an arm's study into ``folder``, those for which its trials suffice.

    Returns:
        The files: ``<arm>_history.svg``, ``<arm>_slice.svg`` and ``<arm>_importance.svg``.
    """
    import matplotlib as mpl

    mpl.use("agg")  # the backend for SVG cannot measure text, which one of the plots needs
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as pictures

    complete = [trial for trial in study.all() if trial.state == TrialState.COMPLETE]
    label = f"validation {study.metric().label}"
    makers: dict[str, Callable[..., object]] = {}
    if complete:
        makers = {"history": pictures.plot_optimization_history, "slice": pictures.plot_slice}
    if importance(study):
        makers["importance"] = partial(pictures.plot_param_importances, evaluator=_evaluator())
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind, make in makers.items():
            make(study.study, target_name=label)
            figure = pyplot.gcf()
            figure.suptitle(study.arm.label)
            path = folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', study.arm.label)}_{kind}.svg"
            figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
            pyplot.close(figure)
            written.append(path)
    return written


def importance(study: ArmStudy) -> dict[str, float]:
    """The share of the value's variance that each setting explains (fANOVA); empty where it is unknown.

    Optuna's default compares the best tenth of the trials with all: for ten or fewer it gives each setting
    about the same share. fANOVA fits trees to all complete trials.
    """
    if no_importance(study):
        return {}
    try:
        shares = optuna.importance.get_param_importances(study.study, evaluator=_evaluator())
    except RuntimeError:  # no tree has a split
        return {}
    return {name: float(share) for name, share in shares.items()}


def no_importance(study: ArmStudy) -> str:
    """The reason why `importance` is unknown; empty where it is known."""
    values = [trial.value for trial in study.all() if trial.state == TrialState.COMPLETE]
    searched = [d for d in study.arm.space.values() if not isinstance(d, Choice) or len(d.values) > 1]
    if len(searched) < 2:
        return "fewer than two settings were searched"
    if len(values) < MIN_TRIALS:
        return f"{len(values)} complete trials, at least {MIN_TRIALS} are needed"
    return "" if len(set(values)) > 1 else "all complete trials have the same value"


def _evaluator() -> optuna.importance.BaseImportanceEvaluator:
    return optuna.importance.FanovaImportanceEvaluator(seed=0)
