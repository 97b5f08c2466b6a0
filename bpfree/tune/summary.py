"""The summary of a search: winners, edges and costs; and the config with the winners' settings."""

from __future__ import annotations

import copy
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from optuna.trial import FrozenTrial, TrialState

from bpfree.bench.config import cells
from bpfree.bench.environment import environment, git
from bpfree.bench.files import Mapped, Values
from bpfree.bench.metric import describe
from bpfree.trainers import Dimension, Range
from bpfree.tune.plan import Plan, TunedArm
from bpfree.tune.study import ArmStudy

SCHEMA = 1

#: A winner this close to an end of its range, as a share of it, is at the edge.
EDGE = 0.05


def summarize(plan: Plan, studies: Sequence[ArmStudy]) -> Mapped:
    """The results of a search, as plain JSON-able data.

    Returns:
        ``name``, ``sampler``, ``pruner``, ``seeds``, ``env``, ``git``, and ``arms``: for each its label,
        trainer, metric, space, trials by outcome, ``seconds``, ``best`` (absent while no trial is complete),
        the names of settings that are at an ``edge``, and every trial.
    """
    tune = plan.tune
    return {
        "schema": SCHEMA,
        "name": plan.name,
        "sampler": {"name": tune.sampler, "seed": tune.seed},
        "pruner": tune.pruner,
        "seeds": tune.seeds,
        "fit": {study.arm.label: study.arm.cells[0].record()["fit"] for study in studies},
        "env": environment(torch.device(plan.arms[0].cells[0].device), plan.arms[0].cells[0].threads),
        "git": git(),
        "arms": [_arm(study) for study in studies],
        "not_searched": [arm.label for arm in plan.arms if not arm.space],
    }


def _arm(study: ArmStudy) -> Mapped:
    trials = [trial for trial in study.all() if trial.state != TrialState.WAITING]
    counted = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    diverged = [t for t in counted if "diverged" in t.user_attrs]
    complete = [t for t in counted if t.state == TrialState.COMPLETE]
    result: Mapped = {
        "label": study.arm.label,
        "trainer": study.arm.cells[0].trainer.id,
        **describe(study.metric()),
        "space": {name: str(dimension) for name, dimension in study.arm.space.items()},
        "trials": len(counted),
        "complete": len(complete),
        "pruned": len(counted) - len(complete) - len(diverged),
        "diverged": len(diverged),
        "attempts": len(trials),
        "seconds": round(sum(_seconds(trial) for trial in trials), 3),
        "history": [_trial(trial) for trial in trials],
    }
    if complete:
        best = _best(study.arm, complete)
        result["best"] = {**_trial(best), "cells": best.user_attrs["cells"]}
        result["edge"] = at_edge(study.arm, best.params)
    return result


def _best(arm: TunedArm, complete: Sequence[FrozenTrial]) -> FrozenTrial:
    """The winner; of equal ones, one inside the space rather than at its edge, then the first.

    A small validation set has few possible values, so ties are common, and the order of trials is random.
    """

    def rank(trial: FrozenTrial) -> tuple[float, int, int]:
        assert trial.value is not None
        return arm.metric.signed(trial.value), -len(at_edge(arm, trial.params)), -trial.number

    return max(complete, key=rank)


def _trial(trial: FrozenTrial) -> Mapped:
    shown = {"number": trial.number, "state": trial.state.name.lower(), "params": trial.params}
    value = {"value": trial.value} if trial.state == TrialState.COMPLETE else {}
    return {**shown, **value, "seconds": _seconds(trial)}


def _seconds(trial: FrozenTrial) -> float:
    return float(trial.user_attrs.get("pulse", {}).get("seconds", 0.0))


def at_edge(arm: TunedArm, params: Values) -> list[str]:
    """The settings whose value is at an end of its dimension: there may be a better value beyond it."""
    return [name for name, value in params.items() if _is_edge(arm.space[name], value)]


def _is_edge(dimension: Dimension, value: object) -> bool:
    if isinstance(dimension, Range):
        assert isinstance(value, int | float)
        return not EDGE <= dimension.fraction(value) <= 1 - EDGE
    numbers = [v for v in dimension.values if isinstance(v, int | float) and not isinstance(v, bool)]
    return len(numbers) == len(dimension.values) > 2 and value in (min(numbers), max(numbers))


def winning_config(plan: Plan, summary: Mapped) -> Mapped | None:
    """The experiment with the winners' settings and their cost; None while an arm has no complete trial."""
    config = copy.deepcopy(plan.config)
    by_label = {arm.label: arm for arm in plan.arms}
    for of_arm in summary["arms"]:
        if "best" not in of_arm:
            return None
        position = by_label[of_arm["label"]].position
        arm = config if position == 0 else config["controls"][position - 1]
        arm["trainer"].update(of_arm["best"]["params"])
        arm["tuning"] = {"trials": of_arm["trials"], "seconds": of_arm["seconds"]}
    cells(config)
    return config


def write_json(path: Path, content: Mapped) -> None:
    """Write a JSON file atomically."""
    _replace(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_yaml(path: Path, content: Mapped, comment: str) -> None:
    """Write a YAML file with a comment above, atomically."""
    from ruamel.yaml import YAML

    buffer = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(content, buffer)
    _replace(path, "".join(f"# {line}\n" for line in comment.splitlines()) + buffer.getvalue())


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
