"""What the laws share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from bpfree.trainers import History, Trainer


class MakeTrainer(Protocol):
    """Makes a trainer, new and with the same network weights at each call."""

    def __call__(self, **settings: Any) -> Trainer:
        """The trainer, with ``settings`` (and ``seed``) given to it."""


def assert_same_bits(found: nn.Module, expected: nn.Module, what: str = "the two modules") -> None:
    """Check that two modules have the same state, bit for bit.

    Args:
        found: One module.
        expected: The other.
        what: What to call the pair in the message.

    Raises:
        AssertionError: naming the first tensor that differs, and by how much.
    """
    ours, theirs = found.state_dict(), expected.state_dict()
    if ours.keys() != theirs.keys():
        raise AssertionError(f"{what}: different tensors: {sorted(ours.keys() ^ theirs.keys())}")
    for name, tensor in ours.items():
        if not torch.equal(tensor, theirs[name]):
            gap = (tensor.double() - theirs[name].double()).abs().max().item()
            raise AssertionError(f"{what}: {name} differs, by up to {gap:.3g}")


def assert_same_history(found: History, expected: History, what: str) -> None:
    """Check that two runs saw the same losses and accuracies, and stopped alike.

    Raises:
        AssertionError: naming the first epoch that differs.
    """
    for ours, theirs in zip(found.rows, expected.rows, strict=False):
        if ours != theirs:
            raise AssertionError(f"{what}: the histories differ: {ours} and {theirs}")
    if len(found.rows) != len(expected.rows) or found.stages != expected.stages:
        raise AssertionError(f"{what}: the histories differ: {found.stages} and {expected.stages}")


@contextmanager
def disturbed(value: int) -> Iterator[None]:
    """Leave torch's global generator in some other state inside: no run may depend on what it finds there."""
    with torch.random.fork_rng():
        torch.manual_seed(value)
        yield
