"""Random streams that depend only on (seed, purpose, position).

No generator has a state that lasts longer than one use: the numbers of step 17 of epoch 3 are a function of
the seed of the run and of this position. So a resumed run draws the same numbers as an uninterrupted run, and
all schedules draw the same numbers for the same block and step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

Part = int | str


def derive(seed: int, *parts: Part) -> int:
    """Return the 63-bit seed of the stream ``parts``, independent of all other streams of ``seed``."""
    text = "/".join(map(str, (seed, *parts))).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def generator(device: torch.device, seed: int, *parts: Part) -> torch.Generator:
    """Return a new generator on ``device`` for the stream ``parts``."""
    text = "/".join(map(str, (seed, *parts))).encode()
    value = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
    return torch.Generator(device).manual_seed(value)


@contextmanager
def fork_global(device: torch.device) -> Iterator[None]:
    """Restore the states of the global generators of the CPU and of ``device`` at exit."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def seed_global(device: torch.device, seed: int, *parts: Part) -> None:
    """Seed the global generator of ``device``, which dropout uses, with the stream ``parts``.

    Call it only inside `fork_global`, so that a run does not change the random numbers of other code.
    """
    # As `derive`, without a call: it runs for every block in every step.
    text = "/".join(map(str, (seed, *parts))).encode()
    value = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(value)
    else:
        torch.default_generator.manual_seed(value)
