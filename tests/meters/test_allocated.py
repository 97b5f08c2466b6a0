"""The peak of the allocator against sums calculated by hand."""

import torch

from bpfree.meters import allocated_on_cpu

MIB = 2**20


def test_peak_is_the_largest_sum_of_live_bytes() -> None:
    before = torch.ones(MIB // 4)
    with allocated_on_cpu() as allocated:
        one = torch.ones(MIB // 4)
        two = one + before
        del one
        three = torch.ones(MIB // 2)
        del two, three
        del before
        four = torch.ones(MIB // 4)
    assert allocated.peak_bytes == 3 * MIB
    assert four.sum() == MIB // 4


def test_peak_is_0_without_allocations() -> None:
    with allocated_on_cpu() as allocated:
        pass
    assert allocated.peak_bytes == 0
