"""Checks of runs: equal seeds give equal results, and so do interrupted and uninterrupted runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bpfree._types import JsonObject
from bpfree.testing._common import MakeTrainer, assert_same_bits, assert_same_history, seeded_globally
from bpfree.trainers import Checkpoint, History, Hooks, Trainer


def assert_same_seed_same_run(
    make_trainer: MakeTrainer,
    data: object,
    validation: object = None,
    *,
    epochs: int = 2,
    batch_size: int = 16,
    other_seed_differs: bool = True,
) -> None:
    """Check that the result of a run depends on its seed, and not on torch's global generator.

    Two runs with equal seeds must have bit-identical weights and equal histories, with different states of
    the global generator. A run with another seed must have other weights.

    Args:
        make_trainer: Returns the trainer, for a given ``seed``.
        data: Training data, as for `Trainer.fit`.
        validation: Validation data, or None.
        epochs: Number of epochs.
        batch_size: Number of samples of each step.
        other_seed_differs: Whether to check that another seed gives other weights.

    Raises:
        AssertionError: If a check fails. The message names the tensor or the epoch that differs, or the seed
            that has no effect.
    """
    runs = []
    for global_seed, seed in enumerate((0, 0, 1)):
        trainer = make_trainer(seed=seed)
        with seeded_globally(global_seed):
            history = trainer.fit(data, validation, epochs=epochs, batch_size=batch_size)
        runs.append((trainer, history))
    (first, history), (second, second_history), (other, _) = runs
    what = f"{first.id}: two runs with the same seed"
    assert_same_bits(second.cascade, first.cascade, what)
    assert_same_history(second_history, history, what)
    if other_seed_differs and _same(first.cascade, other.cascade):
        raise AssertionError(f"{first.id}: the runs with seeds 0 and 1 end with the same weights")


def _same(one: nn.Module, other: nn.Module) -> bool:
    other_state = other.state_dict()
    return all(torch.equal(tensor, other_state[name]) for name, tensor in one.state_dict().items())


def assert_resumes(
    make_trainer: MakeTrainer,
    data: object,
    folder: Path,
    validation: object = None,
    *,
    stops: Sequence[int] | None = None,
    **fit: Any,
) -> None:
    """Check that an interrupted and resumed run has bit-identical results to an uninterrupted run.

    A run that writes a checkpoint after every step is interrupted after one of the writes: within an epoch,
    at its end, in any stage. A trainer whose network has other weights resumes the run from the checkpoint. A
    further run is interrupted at all of these points in turn.

    Args:
        make_trainer: Returns the trainer; called without arguments.
        data: Training data, as for `Trainer.fit`.
        folder: Folder of the checkpoints.
        validation: Validation data, or None.
        stops: Numbers of the writes after which to interrupt, counted from 1, ascending. Default: seven,
            including the first and the last.
        **fit: Fields of `bpfree.trainers.FitSettings`. Default: 3 epochs in batches of 16.

    Raises:
        AssertionError: If results differ. The message names the interruption, and the tensor or the epoch.
    """
    fit = {"epochs": 3, "batch_size": 16} | fit
    uninterrupted = make_trainer()
    expected = uninterrupted.fit(data, validation, **fit)
    if stops is None:
        path = folder / "counted.state"
        path.unlink(missing_ok=True)
        _, writes = _run(make_trainer(), data, validation, path, None, fit)
        stops = sorted({1 + i * (writes - 1) // 6 for i in range(7)})
    for points in [*([stop] for stop in stops), list(stops)]:
        what = (
            f"{uninterrupted.id}: a run interrupted after write {', '.join(map(str, points))} and an "
            "uninterrupted run"
        )
        path = folder / f"{'_'.join(map(str, points))}.state"
        path.unlink(missing_ok=True)
        for number, stop in enumerate([*points, None]):
            trainer = make_trainer()
            if number > 0:
                _randomize(trainer.net)
            with seeded_globally(number):
                history, _ = _run(trainer, data, validation, path, stop, fit)
            if (history is None) != (stop is not None):
                raise AssertionError(f"{what}: the run ended before write {stop}")
        assert history is not None
        assert_same_bits(trainer.cascade, uninterrupted.cascade, what)
        assert_same_history(history, expected, what)
        if history.resumed != len(points):
            raise AssertionError(
                f"{what}: the run was resumed {history.resumed} times; expected {len(points)}"
            )


def _run(
    trainer: Trainer, data: object, validation: object, path: Path, stop: int | None, fit: JsonObject
) -> tuple[History | None, int]:
    """Run until write number ``stop``.

    Returns:
        The history, or None if the run was interrupted; and the number of writes so far.
    """
    stopper = _Stopper(stop)
    checkpoint = Checkpoint(path, every_s=0.0, carried=stopper)
    try:
        history = trainer.fit(data, validation, checkpoint=checkpoint, hooks=Hooks(stopper.window), **fit)
    except _StopError:
        return None, stopper.writes
    return history, stopper.writes


class _StopError(Exception):
    """Interrupts a run."""


class _Stopper:
    """Counts checkpoints in a counter that they contain, and interrupts the run after number ``stop``."""

    def __init__(self, stop: int | None) -> None:
        self.stop, self.writes = stop, 0

    def state(self) -> dict[str, int]:
        self.writes += 1
        return {"writes": self.writes}

    def load(self, state: dict[str, int]) -> None:
        self.writes = state["writes"]

    @contextmanager
    def window(self, _: str) -> Iterator[None]:
        before = self.writes
        yield
        if before < self.writes == self.stop:
            raise _StopError


@torch.no_grad()
def _randomize(net: nn.Module) -> None:
    """Set random weights: resuming a run must not depend on the initial weights of the network."""
    for tensor in net.parameters():
        tensor.copy_(torch.rand_like(tensor))
