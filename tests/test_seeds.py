"""Random streams depend only on seed, purpose and position."""

from __future__ import annotations

import hashlib
import itertools

import torch

from bpfree import _seeds

CPU = torch.device("cpu")


def test_streams_differ_in_every_part_of_their_name() -> None:
    names = [(0,), (1,), (0, "order"), (0, "order", 0), (0, "order", 1), (0, "step", 1), (0, "order", 1, 1)]
    seeds = [_seeds.derive(*name) for name in names]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_follow_the_documented_recipe() -> None:
    # 8 bytes of blake2b of the parts, joined by slashes, without the lowest bit.
    digest = hashlib.blake2b(b"3/order/7", digest_size=8).digest()
    assert _seeds.derive(3, "order", 7) == int.from_bytes(digest, "little") // 2


def test_consecutive_streams_are_uncorrelated() -> None:
    draws = [torch.rand(4000, generator=_seeds.generator(CPU, 0, "order", k)) for k in range(4)]
    for one, other in itertools.combinations(draws, 2):
        # The standard deviation of the correlation of 4000 pairs is 0.016.
        assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1]) < 0.08


def test_a_generator_is_new_and_does_not_change_the_global_one() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, other = (_seeds.generator(CPU, 0, "negatives", 2) for _ in range(2))
    assert torch.equal(torch.rand(5, generator=one), torch.rand(5, generator=other))
    assert torch.equal(torch.get_rng_state(), before)


def test_seed_global_seeds_the_global_generator_with_a_stream() -> None:
    _seeds.seed_global(CPU, 0, "heads")
    values = torch.rand(5)
    assert torch.equal(values, torch.rand(5, generator=_seeds.generator(CPU, 0, "heads")))
