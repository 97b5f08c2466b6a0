"""The allocator's peak against sums that can be done by hand."""

import torch

from bpfree.meters import allocated_on_cpu

MIB = 2**20


def test_peak_is_the_largest_sum_of_live_bytes() -> None:
    there = torch.ones(MIB // 4)
    with allocated_on_cpu() as found:
        one = torch.ones(MIB // 4)
        two = one + there
        del one
        three = torch.ones(MIB // 2)
        del two, three
        del there
        four = torch.ones(MIB // 4)
    assert found.peak_bytes == 3 * MIB
    assert four.sum() == MIB // 4


def test_peak_is_0_without_allocations() -> None:
    with allocated_on_cpu() as found:
        pass
    assert found.peak_bytes == 0
