"""Pictures of a search: how the best value grew, what each setting did, and how much each mattered."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from bpfree.tune.study import ArmStudy


def draw(study: ArmStudy, folder: Path) -> list[Path]:
    """Write SVG pictures of an arm's study into ``folder``, as far as its trials suffice for them.

    Returns:
        The files: ``<arm>_history.svg``, ``<arm>_slice.svg`` and ``<arm>_importance.svg``.
    """
    import matplotlib as mpl

    mpl.use("agg")  # the backend for SVG cannot measure text, as one of the pictures must
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as pictures

    complete = [trial for trial in study.all() if trial.state == TrialState.COMPLETE]
    label = "validation accuracy"
    makers: dict[str, Callable[..., Any]] = {}
    if complete:
        makers = {"history": pictures.plot_optimization_history, "slice": pictures.plot_slice}
    if importance(study):
        makers["importance"] = pictures.plot_param_importances
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
    """The share of the value's variance that each setting explains; empty where that cannot be told."""
    values = {t.value for t in study.all() if t.state == TrialState.COMPLETE}
    if len(values) < 2 or len(study.arm.space) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return dict(optuna.importance.get_param_importances(study.study))
