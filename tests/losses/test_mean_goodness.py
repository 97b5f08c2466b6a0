"""Mean goodness of class groups, against a loop over channels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bpfree import BadValue
from bpfree.losses import MeanGoodness
from bpfree.losses.mean_goodness import class_groups
from bpfree.nn import RowNorm

ROWS, CLASSES = 5, 3
TARGET = torch.tensor([0, 2, 1, 1, 0])


def activities(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).relu()


def built(output: Tensor, scale: float = 1.0) -> MeanGoodness:
    loss = MeanGoodness(scale)
    loss.build(output, CLASSES)
    return loss.double()


@pytest.mark.parametrize("shape", [(7,), (7, 2, 3)])
def test_scores_and_loss_equal_a_loop_over_channels(shape: tuple[int, ...]) -> None:
    output = activities(ROWS, *shape)
    members = {0: [0, 1, 2], 1: [3, 4], 2: [5, 6]}
    goodness = [[sum(row[c].sum().item() for c in members[k]) / sum(row[c].numel() for c in members[k])
                 for k in range(CLASSES)] for row in output]  # fmt: skip
    loss = built(output, scale=2.5)
    expected = torch.tensor(goodness, dtype=torch.float64)
    torch.testing.assert_close(loss.goodness(output), expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(loss.scores(output), 2.5 * expected, rtol=1e-6, atol=1e-9)
    total = 0.0
    for row, y in zip(goodness, TARGET.tolist(), strict=True):
        total -= 2.5 * row[y] - math.log(sum(math.exp(2.5 * g) for g in row))
    assert loss(output, TARGET).item() == pytest.approx(total / ROWS, rel=1e-6)


@pytest.mark.parametrize(("width", "n_classes"), [(7, 3), (64, 10), (10, 10), (128, 100)])
def test_group_sizes_differ_by_at_most_one(width: int, n_classes: int) -> None:
    sizes = class_groups(width, n_classes).bincount(minlength=n_classes)
    assert int(sizes.sum()) == width
    assert int(sizes.max() - sizes.min()) <= 1
    assert int(sizes.min()) >= 1


def test_units_of_a_class_have_equal_gradients() -> None:
    output = activities(ROWS, 6).requires_grad_()
    (gradient,) = torch.autograd.grad(built(output)(output, TARGET), output)
    pairs = gradient.view(ROWS, CLASSES, 2)
    torch.testing.assert_close(pairs[..., 0], pairs[..., 1])
    # Gradient descent increases the goodness of the label and decreases the others.
    assert (pairs[torch.arange(ROWS), TARGET] < 0).all()
    assert (pairs.sum(1).abs() < 1e-9).all()


def test_layer_normalization_removes_the_mean_and_scale_of_a_row() -> None:
    output = activities(ROWS, 6)
    scaled = 3.0 * output + 1.0
    norm = RowNorm(eps=0.0)
    torch.testing.assert_close(norm(output), norm(scaled))
    assert norm(output).mean(1).abs().max() < 1e-12


def test_a_block_with_fewer_channels_than_classes_is_refused() -> None:
    with pytest.raises(BadValue, match="mean goodness of 3 classes: a block has 2 channels"):
        built(activities(ROWS, 2))
    with pytest.raises(BadValue, match="scale = 0"):
        MeanGoodness(0)
