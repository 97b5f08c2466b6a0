"""Functions that several checks use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from bpfree.trainers import History, Trainer


class MakeTrainer(Protocol):
    """Function that returns a new trainer, whose network has the same weights at each call."""

    def __call__(self, **settings: Any) -> Trainer:
        """Return the trainer, created with ``settings``."""


def assert_same_bits(actual: nn.Module, expected: nn.Module, what: str = "the two modules") -> None:
    """Check that two modules have bit-identical states.

    Args:
        actual: A module.
        expected: The module to compare it with.
        what: Description of the two modules in the message.

    Raises:
        AssertionError: If the states differ. The message names the first tensor that differs, and the largest
            difference.
    """
    state, expected_state = actual.state_dict(), expected.state_dict()
    if state.keys() != expected_state.keys():
        raise AssertionError(
            f"{what}: these tensors are in one state only: {sorted(state.keys() ^ expected_state.keys())}"
        )
    for name, tensor in state.items():
        if not torch.equal(tensor, expected_state[name]):
            gap = (tensor.double() - expected_state[name].double()).abs().max().item()
            raise AssertionError(f"{what}: {name} differs by up to {gap:.3g}")


def assert_same_history(actual: History, expected: History, what: str) -> None:
    """Check that two runs have the same losses, accuracies and numbers of epochs.

    Args:
        actual: A history.
        expected: The history to compare it with.
        what: Description of the two runs in the message.

    Raises:
        AssertionError: If the histories differ. The message gives the first epoch that differs.
    """
    for row, expected_row in zip(actual.rows, expected.rows, strict=False):
        if row != expected_row:
            raise AssertionError(f"{what}: the histories differ: {row} and {expected_row}")
    if len(actual.rows) != len(expected.rows) or actual.stages != expected.stages:
        raise AssertionError(f"{what}: the histories differ: {actual.stages} and {expected.stages}")


@contextmanager
def seeded_globally(value: int) -> Iterator[None]:
    """Seed torch's global generator inside the context; no run may depend on its state."""
    with torch.random.fork_rng():
        torch.manual_seed(value)
        yield
