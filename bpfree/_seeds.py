"""Random streams that depend on (seed, purpose, position) alone.

No generator is ever carried along: the numbers drawn at step 17 of epoch 3 follow from the run's seed and
from that position. So a run that is resumed in the middle draws what the uninterrupted one draws, and every
schedule draws the same numbers for the same block and step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

Part = int | str


def derive(seed: int, *parts: Part) -> int:
    """A 63-bit seed for the stream named by ``parts``, independent of every other stream of ``seed``."""
    text = "/".join(map(str, (seed, *parts))).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def generator(device: torch.device, seed: int, *parts: Part) -> torch.Generator:
    """A fresh generator on ``device`` for the stream named by ``parts``."""
    return torch.Generator(device).manual_seed(derive(seed, *parts))


@contextmanager
def borrowed(device: torch.device) -> Iterator[None]:
    """Inside, `seed_global` may be called; the CPU's and ``device``'s generators are then put back."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def seed_global(device: torch.device, seed: int, *parts: Part) -> None:
    """Point the global generator of ``device`` (dropout, noise layers) at the stream named by ``parts``.

    Only inside `borrowed`: what others draw later must not depend on where a run left it.
    """
    value = derive(seed, *parts)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(value)
    else:
        torch.default_generator.manual_seed(value)
