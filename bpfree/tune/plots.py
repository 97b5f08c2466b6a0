"""Plots of a search: the best value over trials, slices of the settings, and their importances."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import optuna
from optuna.trial import TrialState

from bpfree.trainers import Choice
from bpfree.tune.study import ArmStudy

#: Complete trials that importances need.
MIN_TRIALS = 10


def draw(study: ArmStudy, folder: Path) -> list[Path]:
    """Write SVG plots of an arm's study into ``folder``, see `draw_study`."""
    return draw_study(study.study, study.arm.label, folder, importance(study), study.metric().label)


def draw_study(
    study: optuna.Study,
    label: str,
    folder: Path,
    importances: Mapping[str, float],
    metric: str = "accuracy",
) -> list[Path]:
    """Write SVG plots of a study into ``folder``; none if no trial is complete.

    Args:
        study: The trials of one arm.
        label: The arm's label.
        folder: Folder for the plots; it is made if it does not exist.
        importances: Importance of each setting, as given by `importance`; empty: they are not drawn.
        metric: Label of the metric that was searched for.

    Returns:
        The files: ``<label>_history.svg``, ``<label>_slice.svg`` and ``<label>_importance.svg``.
    """
    import matplotlib as mpl

    mpl.use("agg")  # the backend for SVG cannot measure text, which one of the plots needs
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as pictures

    makers: dict[str, Callable[[], object]] = {}
    if study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        value = f"validation {metric}"
        makers["history"] = partial(pictures.plot_optimization_history, study, target_name=value)
        makers["slice"] = partial(pictures.plot_slice, study, target_name=value)
    if importances:
        makers["importance"] = partial(_draw_importances, importances, metric)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind, make in makers.items():
            make()
            figure = pyplot.gcf()
            figure.suptitle(label)
            path = folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', label)}_{kind}.svg"
            figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
            pyplot.close(figure)
            written.append(path)
    return written


def _draw_importances(importances: Mapping[str, float], metric: str) -> None:
    """Draw a bar for each setting, the most important one on top."""
    from matplotlib import pyplot

    names = sorted(importances, key=lambda name: importances[name])
    _, axes = pyplot.subplots(constrained_layout=True)
    axes.bar_label(axes.barh(names, [importances[name] for name in names]), fmt="%.2f")
    axes.set(xlabel=f"share of the variance of validation {metric}", ylabel="setting", xlim=(0, 1.1))


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
