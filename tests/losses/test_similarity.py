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
from bpfree.losses.similarity import (
    label_similarity,
    map_std,
    pooling_size,
    similarity_loss,
    similarity_matrix,
)

ROWS, CLASSES = 7, 3
TARGET = torch.tensor([0, 2, 1, 1, 0, 2, 2])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def built(output: Tensor, **options: Any) -> PredSim:
    torch.manual_seed(0)
    loss = PredSim(**options)
    loss.build(output.float(), CLASSES)
    return loss.double()


def cosine(a: list[float], b: list[float]) -> float:
    """The cosine of two centered rows."""
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


def test_the_similarity_loss_equals_a_loop_over_pairs() -> None:
    features = normal(ROWS, 5)
    expected = pairs_loss(features.tolist(), TARGET.tolist(), CLASSES)
    assert similarity_loss(features, TARGET, CLASSES).item() == pytest.approx(expected, rel=1e-12)


def test_the_similarity_of_labels_equals_that_of_one_hot_rows() -> None:
    for n_classes in (3, 10):
        one_hot = F.one_hot(TARGET, n_classes).double()
        torch.testing.assert_close(label_similarity(TARGET, n_classes).double(), similarity_matrix(one_hot))
    assert label_similarity(torch.zeros(2, dtype=torch.long), 1).tolist() == [[1, 1], [1, 1]]


def test_similarity_does_not_depend_on_scale_and_offset_and_is_0_for_a_constant_row() -> None:
    features = normal(ROWS, 5)
    transformed = features * torch.linspace(0.5, 3, ROWS).unsqueeze(1).double() + normal(ROWS, 1, seed=1)
    torch.testing.assert_close(similarity_matrix(features), similarity_matrix(transformed))
    torch.testing.assert_close(similarity_matrix(features).diagonal(), torch.ones(ROWS).double())
    features[2] = 4.0
    assert similarity_matrix(features)[2].abs().max() == 0


def test_the_loss_of_one_hot_features_is_0() -> None:
    features = 3 * F.one_hot(TARGET, CLASSES).double() + 1
    assert similarity_loss(features, TARGET, CLASSES).item() < 1e-20


def test_map_std_is_the_standard_deviation_and_a_constant_map_has_a_gradient_of_0() -> None:
    maps = normal(ROWS, 4, 3, 5)
    torch.testing.assert_close(map_std(maps), maps.flatten(2).std(2), rtol=1e-9, atol=1e-9)
    constant = torch.full((2, 3, 4, 4), 0.25, requires_grad=True)
    (gradient,) = torch.autograd.grad(map_std(constant).sum(), constant)
    assert gradient.abs().max() == 0
    single = normal(ROWS, 4, 1, 1)
    assert torch.equal(map_std(single), single.flatten(1))


@pytest.mark.parametrize("shape", [(6,), (3, 4, 4)])
@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_the_gradient_equals_finite_differences(shape: tuple[int, ...], weight: float) -> None:
    output = normal(ROWS, *shape).requires_grad_()
    loss = built(output, sim_weight=weight, features=12)
    (gradient,) = torch.autograd.grad(loss(output, TARGET), output)
    step, flat = 1e-6, output.detach().clone().view(-1)

    def value(x: Tensor) -> float:
        # With weight 1 the prediction is a part of the value, but not of the gradient.
        total = loss(x, TARGET)
        return (total - F.cross_entropy(loss.scores(x), TARGET) if weight == 1 else total).item()

    for i in range(0, flat.numel(), 11):
        plus, minus = flat.clone(), flat.clone()
        plus[i] += step
        minus[i] -= step
        difference = (value(plus.view_as(output)) - value(minus.view_as(output))) / (2 * step)
        assert gradient.view(-1)[i].item() == pytest.approx(difference, rel=1e-4, abs=1e-8)


def test_the_loss_is_the_weighted_sum_of_prediction_and_similarity() -> None:
    output = normal(ROWS, 3, 4, 4)
    loss = built(output, sim_weight=0.7, features=12)
    conv, linear = loss.projection, list(loss.head)[-1]  # type: ignore[arg-type]
    maps = F.conv2d(output, conv.weight, padding=1)
    deviations = [[m.flatten().std().item() for m in row] for row in maps]
    sim = pairs_loss(deviations, TARGET.tolist(), CLASSES)
    pooled = output.view(ROWS, 3, 2, 2, 2, 2).mean((3, 5)).flatten(1)
    pred = F.cross_entropy(pooled @ linear.weight.T, TARGET).item()
    assert loss(output, TARGET).item() == pytest.approx(0.3 * pred + 0.7 * sim, rel=1e-9)


@pytest.mark.parametrize("shape", [(6,), (3, 4, 4)])
def test_with_weight_0_it_equals_the_loss_of_mono_forward(shape: tuple[int, ...]) -> None:
    output = normal(ROWS, *shape)
    torch.manual_seed(0)
    plain = LocalCrossEntropy()
    plain.build(output.float(), CLASSES)
    plain.double()
    loss = built(output, sim_weight=0.0)
    assert sum(p.numel() for p in loss.parameters()) == sum(p.numel() for p in plain.parameters())
    assert torch.equal(loss(output, TARGET), plain(output, TARGET))
    assert torch.equal(loss.scores(output), plain.scores(output))


def test_with_weight_1_the_output_has_no_gradient_of_the_prediction() -> None:
    output = normal(ROWS, 6).requires_grad_()
    loss = built(output, sim_weight=1.0)
    loss(output, TARGET).backward()
    only = torch.autograd.grad(loss.similarity(output, TARGET), output)[0]
    torch.testing.assert_close(output.grad, only)
    assert list(loss.head)[-1].weight.grad.abs().sum() > 0  # type: ignore[arg-type,union-attr]


def test_without_a_projection_the_similarity_is_that_of_the_output() -> None:
    output = normal(ROWS, 6)
    loss = built(output, sim_weight=1.0, project=False)
    torch.testing.assert_close(loss.similarity(output, TARGET), similarity_loss(output, TARGET, CLASSES))
    assert [name for name, _ in loss.named_parameters()] == ["head.1.weight"]


@pytest.mark.parametrize(
    ("shape", "features", "side", "remaining"),
    [
        ((32, 28, 28), 1024, 6, 800),
        ((128, 28, 28), 1024, 14, 512),
        ((512, 3, 3), 1024, 3, 512),
        ((512, 4, 4), 2048, 2, 2048),
        ((8, 4, 4), 128, 1, 128),
        ((64, 4, 6), 10, 6, 64),
    ],
)
def test_maps_are_pooled_by_the_smallest_sufficient_size(
    shape: tuple[int, int, int], features: int, side: int, remaining: int
) -> None:
    maps = torch.rand(2, *shape)
    assert pooling_size(maps, features) == side
    loss = PredSim(features=features)
    loss.build(maps, CLASSES)
    assert list(loss.head)[-1].in_features == remaining  # type: ignore[arg-type,union-attr]


def test_a_weight_above_1_is_refused() -> None:
    with pytest.raises(BadValue, match=r"sim_weight = 1\.5"):
        PredSim(sim_weight=1.5)
