"""Random streams depend on seed, purpose and position, and on nothing else."""

from __future__ import annotations

import hashlib
import itertools

import torch

from bpfree import _seeds

CPU = torch.device("cpu")


def test_streams_are_told_apart_by_every_part() -> None:
    names = [(0,), (1,), (0, "order"), (0, "order", 0), (0, "order", 1), (0, "step", 1), (0, "order", 1, 1)]
    seeds = [_seeds.derive(*name) for name in names]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_streams_are_the_same_in_every_process() -> None:
    # From the documented recipe: 8 bytes of blake2b of the parts, joined by slashes; the lowest bit dropped.
    digest = hashlib.blake2b(b"3/order/7", digest_size=8).digest()
    assert _seeds.derive(3, "order", 7) == int.from_bytes(digest, "little") // 2


def test_neighbouring_streams_are_independent() -> None:
    draws = [torch.rand(4000, generator=_seeds.generator(CPU, 0, "order", k)) for k in range(4)]
    for one, other in itertools.combinations(draws, 2):
        # Standard deviation of a correlation of 4000 pairs: 0.016.
        assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1]) < 0.08


def test_a_generator_is_fresh_and_leaves_the_global_one_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, other = (_seeds.generator(CPU, 0, "negatives", 2) for _ in range(2))
    assert torch.equal(torch.rand(5, generator=one), torch.rand(5, generator=other))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_global_generator_is_pointed_at_a_stream() -> None:
    _seeds.seed_global(CPU, 0, "heads")
    found = torch.rand(5)
    assert torch.equal(found, torch.rand(5, generator=_seeds.generator(CPU, 0, "heads")))
