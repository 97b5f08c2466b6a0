"""Calibration of normalization layers, against averages of batch statistics."""

from __future__ import annotations

import torch
from torch import nn

from bpfree import Block
from bpfree.engine.calibration import calibrate
from bpfree.losses import LocalCrossEntropy

X = torch.randn(30, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1


def make_block(n_in: int, n_out: int) -> Block:
    front = nn.Sequential(nn.Conv2d(n_in, n_out, 1), nn.ReLU(), nn.BatchNorm2d(n_out))
    return Block(nn.Identity(), LocalCrossEntropy(), front=front)


def test_statistics_are_the_averages_of_the_batches() -> None:
    torch.manual_seed(0)
    blocks = [make_block(2, 3), make_block(3, 4)]
    chunks = X.split(10)
    calibrate(blocks, iter(chunks))
    with torch.no_grad():
        for block in blocks:
            assert block.front is not None
            conv, relu, norm = block.front
            outputs = [relu(conv(chunk)) for chunk in chunks]
            means = torch.stack([o.mean((0, 2, 3)) for o in outputs])
            variances = torch.stack([o.var((0, 2, 3)) for o in outputs])
            torch.testing.assert_close(norm.running_mean, means.mean(0))
            torch.testing.assert_close(norm.running_var, variances.mean(0))
            assert not norm.training
            assert norm.momentum == 0.1
            chunks = [(o - o.mean((0, 2, 3), keepdim=True)) for o in outputs]
            chunks = [o / (o.var((0, 2, 3), correction=0, keepdim=True) + norm.eps).sqrt() for o in chunks]


def test_statistics_are_reset_and_batches_are_not_computed_without_need() -> None:
    block = make_block(2, 3)
    assert block.front is not None
    for _ in range(2):
        calibrate([block], [X])
        first = block.front[2].running_mean.clone()
        block.front[2].running_mean.fill_(7)
    calibrate([block], [X])
    torch.testing.assert_close(block.front[2].running_mean, first)
    calibrate([Block(nn.BatchNorm1d(3), LocalCrossEntropy())], (1 / 0 for _ in "x"))  # type: ignore[misc]
