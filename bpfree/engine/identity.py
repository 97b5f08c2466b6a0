"""The identity of a run: the settings, data and network that a checkpoint must agree on with its run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from bpfree._types import JsonMapping
from bpfree.core.cascade import Cascade
from bpfree.engine.optimizers import hyperparameters
from bpfree.engine.settings import FitSettings, TrainerSettings

Identity = dict[str, Any]

#: Keys of an identity whose values are digests, and the message if they differ.
DIGESTS = {
    "network": "the network is a different one",
    "train.content": "the training samples or labels are different",
    "validation.content": "the validation samples or labels are different",
}

#: Names of the values that describe a data set; a digest of its samples and labels follows them.
DATA = ("name", "samples", "shape", "augment", "mean", "std")


def identity(
    trainer: str,
    seed: int,
    settings: TrainerSettings,
    fit: FitSettings,
    cascade: Cascade,
    dtype: torch.dtype,
    train: Sequence[Any],
    validation: Sequence[Any] | None,
    replaced: Mapping[str, torch.optim.Optimizer],
) -> Identity:
    """The identity of a run, by name, with values as JSON represents them.

    Args:
        trainer: Id of the trainer.
        seed: Its seed.
        settings: Its settings.
        fit: Settings of the run.
        cascade: The blocks.
        dtype: The dtype in which the network computes.
        train: Values that describe the training data, see `DATA`.
        validation: Values that describe the validation data; None without validation.
        replaced: Optimizers that the user has set, by name.
    """
    shapes = [list(p.shape) for p in cascade.parameters()]
    values: Identity = {"trainer": trainer, "seed": seed}
    values |= asdict(settings) | {f"fit.{name}": value for name, value in asdict(fit).items()}
    values["network"] = _digest([shapes, repr(cascade), str(dtype)])
    if frozen := [name for name, p in cascade.named_parameters() if not p.requires_grad]:
        values["frozen parameters"] = frozen
    for part, content in (("train", train), ("validation", validation)):
        *described, digest = [None] if content is None else content
        values |= {f"{part}.{name}": value for name, value in zip(DATA, described, strict=False)}
        values[f"{part}.content"] = digest
    for name, optimizer in replaced.items():
        values[f"optimizers.{name}"] = f"{type(optimizer).__name__} {hyperparameters(optimizer)}"
    plain: Identity = json.loads(json.dumps(values))
    return plain


def fingerprint(identity: JsonMapping) -> str:
    """The digest of an identity."""
    return _digest(identity)


def differences(theirs: JsonMapping, ours: JsonMapping) -> dict[str, str]:
    """A sentence for each value that differs between two identities, by name."""
    names = [name for name in (*ours, *(theirs.keys() - ours)) if theirs.get(name) != ours.get(name)]
    return {
        name: DIGESTS.get(name) or f"{name} is {theirs.get(name)!r} there and {ours.get(name)!r} here"
        for name in names
    }


def _digest(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
