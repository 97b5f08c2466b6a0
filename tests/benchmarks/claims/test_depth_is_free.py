"""The claim about depth at a small size, against what can be counted by hand."""

import torch

from benchmarks.claims import depth_is_free as claim
from bpfree.meters import saved_for_backward

W, B = 64, 128


def test_memory_and_flops_are_those_that_can_be_counted_by_hand() -> None:
    found = claim.measure(width=W, batch=B, depths=(4, 16))
    costs, activation = found["costs"], 4 * B * W
    ours, plain = costs["mono_forward"], costs["backprop"]
    assert ours["16"]["saved"] == ours["4"]["saved"] < 5 * activation
    # A block saves its normalized input, the ReLU's output and its own input, two numbers for each row.
    assert 12 * 2 * activation < plain["16"]["saved"] - plain["4"]["saved"] < 12 * 4 * activation
    assert abs(found["growth"]["peak"]) <= 0.05
    # Sixteen blocks: the inputs of three groups of four, and everything that one group saves.
    checkpointed = costs["square-root checkpointing"]["16"]["saved"]
    assert plain["4"]["saved"] < checkpointed < 0.6 * plain["16"]["saved"]
    parts = costs["gradient accumulation"]["16"]
    assert parts["saved"] < 1.2 * plain["16"]["saved"] / claim.PARTS
    assert parts["flops"] == plain["16"]["flops"]
    # A product each forward, by the weights and, but for the lowest block, by the input; the head has three.
    product, head = 2 * B * W * W, 2 * B * W * claim.CLASSES
    assert plain["16"]["flops"] == (3 * 16 - 1) * product + 3 * head
    assert ours["16"]["flops"] == 2 * 16 * product + 16 * 3 * head
    assert found["flops_over_checkpointing"] == ours["16"]["flops"] / (4 * 16 * product + 3 * head)


def test_a_thousand_blocks_save_no_more_than_four() -> None:
    peaks = []
    for blocks in (4, 1024):
        _, step = claim.make("mono_forward", 8, blocks)
        with saved_for_backward() as saved:
            step(torch.rand(16, 8), torch.arange(16) % claim.CLASSES, 0)
        peaks.append(saved.peak_bytes)
    assert peaks[0] == peaks[1] > 0


def test_checkpointing_and_accumulation_take_the_step_that_backpropagation_takes() -> None:
    x, y = torch.rand(B, W), torch.arange(B) % claim.CLASSES
    nets = {}
    for arm in claim.ARMS[1:]:
        trainer, step = claim.make(arm, W, 4)
        for number in range(3):
            step(x, y, number)
        nets[arm] = list(trainer.net.parameters())
    for arm, found in nets.items():
        for ours, theirs in zip(found, nets["backprop"], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5, msg=arm)
