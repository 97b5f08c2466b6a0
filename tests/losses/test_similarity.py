"""Prediction and similarity matching against loops over pairs of rows (arXiv 1901.06656)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bpfree import BadValue
from bpfree.losses import LocalCrossEntropy, PredSim
from bpfree.losses.similarity import label_similarity, similarity_loss, similarity_matrix, spread, square_for

ROWS, CLASSES = 7, 3
TARGET = torch.tensor([0, 2, 1, 1, 0, 2, 2])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def built(output: Tensor, **options: Any) -> PredSim:
    torch.manual_seed(0)
    loss = PredSim(**options)
    loss.build(output.float(), CLASSES)
    return loss.double()


def cosine(a: list[float], b: list[float]) -> float:
    """Of two rows from which their means are taken, by hand."""
    a, b = ([v - sum(row) / len(row) for v in row] for row in (a, b))
    lengths = math.sqrt(sum(v * v for v in a)) * math.sqrt(sum(v * v for v in b))
    return sum(v * w for v, w in zip(a, b, strict=True)) / lengths


def pairs_loss(features: list[list[float]], target: list[int], n_classes: int) -> float:
    """Mean squared difference of the two similarity matrices, pair by pair."""
    labels = [[float(k == y) for k in range(n_classes)] for y in target]
    n = len(target)
    total = sum(
        (cosine(features[i], features[j]) - cosine(labels[i], labels[j])) ** 2
        for i in range(n)
        for j in range(n)
    )
    return total / n**2


def test_the_similarity_loss_is_that_of_a_loop_over_pairs() -> None:
    features = drawn(ROWS, 5)
    expected = pairs_loss(features.tolist(), TARGET.tolist(), CLASSES)
    assert similarity_loss(features, TARGET, CLASSES).item() == pytest.approx(expected, rel=1e-12)


def test_the_similarity_of_labels_is_that_of_one_hot_rows() -> None:
    for n_classes in (3, 10):
        one_hot = F.one_hot(TARGET, n_classes).double()
        torch.testing.assert_close(label_similarity(TARGET, n_classes).double(), similarity_matrix(one_hot))
    assert label_similarity(torch.zeros(2, dtype=torch.long), 1).tolist() == [[1, 1], [1, 1]]


def test_similarity_sees_neither_length_nor_offset_and_a_constant_row_has_none() -> None:
    features = drawn(ROWS, 5)
    moved = features * torch.linspace(0.5, 3, ROWS).unsqueeze(1).double() + drawn(ROWS, 1, seed=1)
    torch.testing.assert_close(similarity_matrix(features), similarity_matrix(moved))
    torch.testing.assert_close(similarity_matrix(features).diagonal(), torch.ones(ROWS).double())
    features[2] = 4.0
    assert similarity_matrix(features)[2].abs().max() == 0


def test_classes_in_one_place_each_and_evenly_apart_have_no_loss() -> None:
    corners = 3 * F.one_hot(TARGET, CLASSES).double() + 1
    assert similarity_loss(corners, TARGET, CLASSES).item() < 1e-20


def test_spread_is_the_deviation_of_each_map_and_a_constant_map_has_no_gradient() -> None:
    maps = drawn(ROWS, 4, 3, 5)
    torch.testing.assert_close(spread(maps), maps.flatten(2).std(2), rtol=1e-9, atol=1e-9)
    dead = torch.full((2, 3, 4, 4), 0.25, requires_grad=True)
    (gradient,) = torch.autograd.grad(spread(dead).sum(), dead)
    assert gradient.abs().max() == 0
    single = drawn(ROWS, 4, 1, 1)
    assert torch.equal(spread(single), single.flatten(1))


@pytest.mark.parametrize("shape", [(6,), (3, 4, 4)])
@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_the_gradient_by_the_output_is_that_of_finite_differences(
    shape: tuple[int, ...], weight: float
) -> None:
    output = drawn(ROWS, *shape).requires_grad_()
    loss = built(output, sim_weight=weight, features=12)
    (gradient,) = torch.autograd.grad(loss(output, TARGET), output)
    step, flat = 1e-6, output.detach().clone().view(-1)

    def value(x: Tensor) -> float:
        # With weight 1 the prediction teaches the body nothing, though it is part of the value.
        whole = loss(x, TARGET)
        return (whole - F.cross_entropy(loss.scores(x), TARGET) if weight == 1 else whole).item()

    for i in range(0, flat.numel(), 11):
        ahead, behind = flat.clone(), flat.clone()
        ahead[i] += step
        behind[i] -= step
        found = (value(ahead.view_as(output)) - value(behind.view_as(output))) / (2 * step)
        assert gradient.view(-1)[i].item() == pytest.approx(found, rel=1e-4, abs=1e-8)


def test_the_loss_is_the_weighted_sum_of_prediction_and_similarity_by_hand() -> None:
    output = drawn(ROWS, 3, 4, 4)
    loss = built(output, sim_weight=0.7, features=12)
    conv, linear = loss.projection, list(loss.head)[-1]  # type: ignore[arg-type]
    maps = F.conv2d(output, conv.weight, padding=1)
    spreads = [[m.flatten().std().item() for m in row] for row in maps]
    sim = pairs_loss(spreads, TARGET.tolist(), CLASSES)
    pooled = output.view(ROWS, 3, 2, 2, 2, 2).mean((3, 5)).flatten(1)
    pred = F.cross_entropy(pooled @ linear.weight.T, TARGET).item()
    assert loss(output, TARGET).item() == pytest.approx(0.3 * pred + 0.7 * sim, rel=1e-9)


@pytest.mark.parametrize("shape", [(6,), (3, 4, 4)])
def test_without_similarity_it_is_the_loss_of_mono_forward(shape: tuple[int, ...]) -> None:
    output = drawn(ROWS, *shape)
    torch.manual_seed(0)
    plain = LocalCrossEntropy()
    plain.build(output.float(), CLASSES)
    plain.double()
    loss = built(output, sim_weight=0.0)
    assert sum(p.numel() for p in loss.parameters()) == sum(p.numel() for p in plain.parameters())
    assert torch.equal(loss(output, TARGET), plain(output, TARGET))
    assert torch.equal(loss.scores(output), plain.scores(output))


def test_with_similarity_alone_the_prediction_learns_and_teaches_nothing() -> None:
    output = drawn(ROWS, 6).requires_grad_()
    loss = built(output, sim_weight=1.0)
    loss(output, TARGET).backward()
    only = torch.autograd.grad(loss.similarity(output, TARGET), output)[0]
    torch.testing.assert_close(output.grad, only)
    assert list(loss.head)[-1].weight.grad.abs().sum() > 0  # type: ignore[arg-type,union-attr]


def test_without_a_projection_the_output_itself_is_compared() -> None:
    output = drawn(ROWS, 6)
    loss = built(output, sim_weight=1.0, project=False)
    torch.testing.assert_close(loss.similarity(output, TARGET), similarity_loss(output, TARGET, CLASSES))
    assert [name for name, _ in loss.named_parameters()] == ["head.1.weight"]


@pytest.mark.parametrize(
    ("shape", "features", "side", "left"),
    [
        ((32, 28, 28), 1024, 6, 800),
        ((128, 28, 28), 1024, 14, 512),
        ((512, 3, 3), 1024, 3, 512),
        ((512, 4, 4), 2048, 2, 2048),
        ((8, 4, 4), 128, 1, 128),
        ((64, 4, 6), 10, 6, 64),
    ],
)
def test_maps_are_averaged_no_further_than_needed(
    shape: tuple[int, int, int], features: int, side: int, left: int
) -> None:
    maps = torch.rand(2, *shape)
    assert square_for(maps, features) == side
    loss = PredSim(features=features)
    loss.build(maps, CLASSES)
    assert list(loss.head)[-1].in_features == left  # type: ignore[arg-type,union-attr]


def test_a_weight_beyond_1_is_refused() -> None:
    with pytest.raises(BadValue, match=r"sim_weight = 1\.5"):
        PredSim(sim_weight=1.5)
