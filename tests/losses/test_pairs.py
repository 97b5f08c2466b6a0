"""Scores of pairs against plain products, and what they keep for the backward pass."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bpfree.graphs.nodes import PairOutputs
from bpfree.losses import PairScore, pair_dot, pairs
from bpfree.losses.goodness import balanced_mean
from bpfree.meters import saved_for_backward


def ends(n: int, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.randint(n, (2, count), generator=torch.Generator().manual_seed(seed))
    return drawn[0], drawn[1]


@pytest.mark.parametrize("at_once", [3, 4096])
def test_the_product_and_its_gradient_are_the_plain_ones(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bpfree.losses.pairs.PAIRS", at_once)
    z = torch.randn(9, 5, dtype=torch.double, requires_grad=True)
    first, second = ends(9, 20)
    pull = torch.randn(20, dtype=torch.double)
    expected = (z[first] * z[second]).sum(1)
    torch.testing.assert_close(pair_dot(z, first, second), expected)
    (ours,) = torch.autograd.grad((pair_dot(z, first, second) * pull).sum(), z)
    (theirs,) = torch.autograd.grad((expected * pull).sum(), z)
    torch.testing.assert_close(ours, theirs)


def test_no_product_is_kept_per_channel() -> None:
    z = torch.randn(50, 64, requires_grad=True)
    first, second = ends(50, 20_000)
    with saved_for_backward() as saved:
        pair_dot(z, first, second).sum().backward()
    assert saved.peak_bytes <= z.numel() * 4 + 2 * 8 * 20_000
    with saved_for_backward() as saved:
        (z[first] * z[second]).sum(1).sum().backward()
    assert saved.peak_bytes > 2 * 4 * 64 * 20_000


def test_losses_by_hand() -> None:
    z = torch.rand(6, 3)
    target = torch.tensor([[0, 1, 1], [2, 3, 0], [4, 5, 0]])
    dots = (z[target[:, 0]] * z[target[:, 1]]).sum(1)
    truth = target[:, 2].float()
    torch.testing.assert_close(PairScore()(z, target), F.binary_cross_entropy_with_logits(dots, truth))
    goodness = (z[target[:, 0]] * z[target[:, 1]]).square().sum(1) - 2.0
    expected = F.softplus(-goodness[0]) + F.softplus(goodness[1:]).mean()
    torch.testing.assert_close(PairScore("goodness")(z, target), expected)
    scores = PairScore().scores(PairOutputs(z, target[:, :2]))  # type: ignore[arg-type]
    torch.testing.assert_close(scores, dots.unsqueeze(1))
    torch.testing.assert_close(PairScore().probabilities(scores), dots.sigmoid().unsqueeze(1))


def test_a_side_without_rows_counts_nothing() -> None:
    assert balanced_mean(torch.tensor([1.0, 3.0]), torch.tensor([0, 0])).item() == 2.0
    assert balanced_mean(torch.tensor([1.0, 3.0, 8.0]), torch.tensor([0, 0, 1])).item() == 10.0
    assert pairs.PAIRS > 0
