"""Laws about runs: the same seed gives the same one, and a stopped and resumed one ends like any other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bpfree.testing._common import MakeTrainer, assert_same_bits, assert_same_history, disturbed
from bpfree.trainers import Checkpoint, History, Hooks, Trainer


def assert_same_seed_same_run(
    make_trainer: MakeTrainer,
    data: Any,
    validation: Any = None,
    *,
    epochs: int = 2,
    batch_size: int = 16,
    other_seed_differs: bool = True,
) -> None:
    """Check that the seed, and nothing else, decides what a run ends with.

    Two runs with one seed must end with the same bits and histories, whatever state torch's global generator
    was in; a run with another seed must end otherwise.

    Args:
        make_trainer: Makes the trainer; given ``seed``.
        data: Training data, as for `Trainer.fit`.
        validation: Validation data, or None.
        epochs: Passes over the data.
        batch_size: Samples per step.
        other_seed_differs: Whether to check the last point.

    Raises:
        AssertionError: naming the tensor or the epoch that differs, or the seed without an effect.
    """
    runs = []
    for noise, seed in enumerate((0, 0, 1)):
        trainer = make_trainer(seed=seed)
        with disturbed(noise):
            history = trainer.fit(data, validation, epochs=epochs, batch_size=batch_size)
        runs.append((trainer, history))
    (first, seen), (again, seen_again), (other, _) = runs
    what = f"{first.id}: two runs with the same seed"
    assert_same_bits(again.cascade, first.cascade, what)
    assert_same_history(seen_again, seen, what)
    if other_seed_differs and _same(first.cascade, other.cascade):
        raise AssertionError(f"{first.id}: the run with seed 1 ends with the bits of that with seed 0")


def _same(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


def assert_resumes(
    make_trainer: MakeTrainer,
    data: Any,
    folder: Path,
    validation: Any = None,
    *,
    stops: Sequence[int] | None = None,
    **fit: Any,
) -> None:
    """Check that a run that was stopped and taken up again ends as one that never stopped, bit for bit.

    A run that writes a checkpoint after every step is broken off behind one of these writes, in the middle
    of an epoch, at its end, in any stage. Another trainer, whose network has other weights, takes the run up
    from the file. Another run is stopped at every one of these points, one after the other.

    Args:
        make_trainer: Makes the trainer; called without arguments.
        data: Training data, as for `Trainer.fit`.
        folder: Where to write the checkpoints.
        validation: Validation data, or None.
        stops: After which writes to stop, counted from 1, ascending; by default seven, ends included.
        **fit: Fields of `bpfree.trainers.FitSettings`; by default 3 epochs in batches of 16.

    Raises:
        AssertionError: naming the stop, and the tensor or the epoch that differs.
    """
    fit = {"epochs": 3, "batch_size": 16} | fit
    whole = make_trainer()
    expected = whole.fit(data, validation, **fit)
    if stops is None:
        path = folder / "counted.state"
        path.unlink(missing_ok=True)
        _, writes = _run(make_trainer(), data, validation, path, None, fit)
        stops = sorted({1 + i * (writes - 1) // 6 for i in range(7)})
    for points in [*([stop] for stop in stops), list(stops)]:
        what = f"{whole.id}: a run stopped after write {', '.join(map(str, points))} and one never stopped"
        path = folder / f"{'_'.join(map(str, points))}.state"
        path.unlink(missing_ok=True)
        for number, stop in enumerate([*points, None]):
            trainer = make_trainer()
            if number > 0:
                _scramble(trainer.net)
            with disturbed(number):
                history, _ = _run(trainer, data, validation, path, stop, fit)
            if (history is None) != (stop is not None):
                raise AssertionError(f"{what}: it ended before write {stop}")
        assert history is not None
        assert_same_bits(trainer.cascade, whole.cascade, what)
        assert_same_history(history, expected, what)
        if history.resumed != len(points):
            raise AssertionError(f"{what}: it was resumed {history.resumed} times, not {len(points)}")


def _run(
    trainer: Trainer, data: Any, validation: Any, path: Path, stop: int | None, fit: Any
) -> tuple[History | None, int]:
    """Run until write number ``stop``; returns the history, None if it was stopped, and the writes so far."""
    stopper = _Stopper(stop)
    checkpoint = Checkpoint(path, every_s=0.0, carried=stopper)
    try:
        history = trainer.fit(data, validation, checkpoint=checkpoint, hooks=Hooks(stopper.window), **fit)
    except _StopError:
        return None, stopper.writes
    return history, stopper.writes


class _StopError(Exception):
    """Breaks a run off."""


class _Stopper:
    """Travels in the checkpoints, counts them, and breaks the run off behind number ``stop``."""

    def __init__(self, stop: int | None) -> None:
        self.stop, self.writes = stop, 0

    def state(self) -> dict[str, Any]:
        self.writes += 1
        return {"writes": self.writes}

    def load(self, state: dict[str, Any]) -> None:
        self.writes = state["writes"]

    @contextmanager
    def window(self, _: str) -> Iterator[None]:
        before = self.writes
        yield
        if before < self.writes == self.stop:
            raise _StopError


@torch.no_grad()
def _scramble(net: nn.Module) -> None:
    """Other weights: whoever resumes a run need not have made the network as it was made then."""
    for tensor in net.parameters():
        tensor.copy_(torch.rand_like(tensor))
