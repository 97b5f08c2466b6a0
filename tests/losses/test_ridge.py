"""The accumulator against least squares and a direct solution, and merging and removal of samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bpfree import BadValue, CascadedForward, RidgeAccumulator
from bpfree.losses import DualRidge, ridge
from bpfree.meters import count_flops
from tests.helpers import easy, make_mlp

N, D, C = 400, 30, 4


def samples(n: int = N, d: int = D) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    features = torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing + 1
    return features, torch.randint(C, (n,), generator=generator)


def fit(features: Tensor, labels: Tensor, lam: float = 1e-3, **options: bool) -> tuple[Tensor, Tensor]:
    return RidgeAccumulator(features.shape[1], C, **options).add(features, labels).solve(lam)


def close(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], tolerance: float) -> None:
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("columns", [7, 512])
@pytest.mark.parametrize("intercept", [False, True])
def test_without_a_penalty_it_is_least_squares(
    intercept: bool, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ridge, "COLUMNS", columns)
    phi, y = samples()
    design = torch.cat([phi, torch.ones(N, 1, dtype=phi.dtype)], 1) if intercept else phi
    expected = torch.linalg.lstsq(design, torch.eye(C, dtype=phi.dtype)[y]).solution
    weight, bias = fit(phi, y, 0.0, intercept=intercept)
    torch.testing.assert_close(weight, expected[:D], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(bias, expected[D] if intercept else torch.zeros(C, dtype=phi.dtype))


def test_the_penalty_is_scaled_by_the_trace_and_excludes_the_intercept() -> None:
    """The gradient of the documented objective is zero at the solution."""
    phi, y = samples()
    target, lam = torch.eye(C, dtype=phi.dtype)[y], 0.05
    weight, bias = (t.clone().requires_grad_() for t in fit(phi, y, lam))
    scale = phi.square().sum() / D
    objective = (phi @ weight + bias - target).square().sum() + lam * scale * weight.square().sum()
    objective.backward()
    assert weight.grad is not None
    assert bias.grad is not None
    assert weight.grad.abs().max() < 1e-8
    assert bias.grad.abs().max() < 1e-8
    one, other = fit(phi, y, lam, intercept=False), fit(10 * phi, y, lam, intercept=False)
    torch.testing.assert_close(one[0], 10 * other[0])


def test_the_result_does_not_depend_on_order_and_sharding() -> None:
    phi, y = samples()
    expected = fit(phi, y)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    shuffled = RidgeAccumulator(D, C)
    for chunk in order.split(37):
        shuffled.add(phi[chunk], y[chunk])
    close(shuffled.solve(1e-3), expected, 1e-10)
    shards = [RidgeAccumulator(D, C).add(phi[part], y[part]) for part in order.split([5, 200, 195])]
    close(shards[2].merge(shards[0]).merge(shards[1]).solve(1e-3), expected, 1e-10)
    assert shards[2].count == N


def test_removal_equals_a_refit_without_the_samples_and_is_cheaper() -> None:
    phi, y = samples(4000, 60)
    removed, remaining = slice(0, 40), slice(40, None)
    accumulator = RidgeAccumulator(60, C).add(phi, y)
    close(accumulator.forget(phi[removed], y[removed]).solve(1e-3), fit(phi[remaining], y[remaining]), 1e-8)
    refit = count_flops(fit, phi[remaining], y[remaining])
    assert refit >= 10 * count_flops(lambda: accumulator.forget(phi[removed], y[removed]).solve(1e-3))


def test_labels_equal_one_hot_targets_for_several_penalties() -> None:
    phi, y = samples()
    target = torch.eye(C)[y]
    accumulator = RidgeAccumulator(D, C).add(phi.float(), target)
    for solution, lam in zip(accumulator.solve_all([1e-3, 0.1, 1e-3]), [1e-3, 0.1, 1e-3], strict=True):
        close(solution, fit(phi.float(), y, lam), 1e-12)


def test_only_the_upper_triangle_of_the_gram_matrix_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ridge, "COLUMNS", 10)
    phi, y = samples(100, 100)
    accumulator = RidgeAccumulator(100, C, intercept=False)
    product, moments = 2 * 100 * 100 * 100, 2 * 100 * 100 * C
    assert count_flops(accumulator.add, phi, y) == round(0.55 * product) + moments


def test_invalid_arguments_are_refused() -> None:
    phi, y = samples()
    accumulator = RidgeAccumulator(D, C)
    with pytest.raises(BadValue, match="no samples"):
        accumulator.solve(0.1)
    with pytest.raises(BadValue, match="expected \\[B, 30\\]"):
        accumulator.add(phi[:, 1:], y)
    with pytest.raises(BadValue, match="targets are"):
        accumulator.add(phi, y[1:])
    with pytest.raises(BadValue, match="the sums have only 0"):
        accumulator.forget(phi, y)
    with pytest.raises(BadValue, match="intercept"):
        accumulator.merge(RidgeAccumulator(D, C, intercept=False))
    with pytest.raises(BadValue, match="expected at least 0"):
        accumulator.add(phi, y).solve(-1.0)
    with pytest.raises(BadValue, match="NaN"):
        RidgeAccumulator(D, C).add(phi * torch.nan, y).solve(0.0)
    with pytest.raises(BadValue, match="at least 1 each"):
        RidgeAccumulator(0, C)


# ---- features without information --------------------------------------------------------------------------


def with_degenerate_features(phi: Tensor) -> Tensor:
    """Some features are 0, one is constant, and two are equal."""
    phi = phi.clone()
    phi[:, [2, 7]], phi[:, 5], phi[:, 11] = 0.0, 3.0, phi[:, 12]
    return phi


@pytest.mark.parametrize("kind", [RidgeAccumulator, DualRidge])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("n", [N, 12])
def test_without_a_penalty_degenerate_features_have_the_minimum_norm_solution(
    kind: Any, intercept: bool, n: int
) -> None:
    phi, y = samples(n)
    phi, target = with_degenerate_features(phi), torch.eye(C, dtype=phi.dtype)[y]
    weight, bias = kind(D, C, intercept).add(phi, y).solve_all([0.0])[0]
    mean, offset = (
        (phi.mean(0), target.mean(0)) if intercept else (torch.zeros(D).double(), torch.zeros(C).double())
    )
    expected = torch.linalg.lstsq(phi - mean, target - offset, driver="gelsd").solution
    torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(bias, offset - mean @ expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [RidgeAccumulator, DualRidge])
def test_with_a_penalty_zero_features_do_not_change_other_weights(kind: Any) -> None:
    phi, y = samples()
    phi[:, [2, 7]] = 0.0
    nonzero = [k for k in range(D) if k not in (2, 7)]
    weight, bias = kind(D, C).add(phi, y).solve_all([1e-3])[0]
    # The penalty as rows of a least-squares problem, in units of the mean over all features.
    scale = (1e-3 * phi.square().sum() / D).sqrt()
    design = torch.cat(
        [torch.cat([phi[:, nonzero], torch.ones(N, 1).double()], 1), torch.eye(29).double()[:28] * scale]
    )
    target = torch.cat([torch.eye(C).double()[y], torch.zeros(28, C).double()])
    expected = torch.linalg.lstsq(design, target).solution
    torch.testing.assert_close(weight[nonzero], expected[:28], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(bias, expected[28], rtol=1e-8, atol=1e-8)
    assert weight[[2, 7]].abs().max() < 1e-12


@pytest.mark.parametrize("kind", [RidgeAccumulator, DualRidge])
@pytest.mark.parametrize("lam", [0.0, 0.1])
def test_without_nonzero_features_the_intercept_is_the_class_frequency(kind: Any, lam: float) -> None:
    _, y = samples()
    weight, bias = kind(D, C).add(torch.zeros(N, D), y).solve_all([lam])[0]
    assert weight.abs().max() == 0
    torch.testing.assert_close(bias, torch.eye(C).double()[y].mean(0))


def test_a_closed_form_on_blocks_with_dead_units_classifies() -> None:
    for value, lam in ((-1.0, 0.0), (1.0, 0.0), (-1.0, 1e-3)):
        net = make_mlp(16, 16)
        with torch.no_grad():
            net[1].weight[:4], net[1].bias[:4] = 0.0, value  # type: ignore[index, operator]
        trainer = CascadedForward(net, predictor="closed_form", lam=[lam], progress=False)
        trainer.fit(easy(), epochs=1)
        assert trainer.evaluate(easy(seed=1))["accuracy"] > 0.95
