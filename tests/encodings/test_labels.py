"""Encodings: label codes, and the distribution of wrong labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor, nn

from bpfree import BadValue
from bpfree.data import TensorData
from bpfree.encodings import label_overlay
from bpfree.encodings.base import Encoding
from bpfree.encodings.label_overlay import DenseRows, LabelOverlay, Overlaid, OverlaidLinear
from bpfree.encodings.label_slots import LabelSlots
from bpfree.nn import LengthNorm

C, B = 5, 8
X = torch.rand(B, 3, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(B) % C


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dense(rows: Any) -> Tensor:
    assert isinstance(rows, Overlaid)
    return rows.dense()


def test_the_base_encoding_returns_samples_unchanged() -> None:
    encoding = Encoding()
    rows, target = encoding.encode(X, Y, encoding.draw(Y, stream()))
    assert rows is X
    assert target is Y
    assert encoding.view(X, "plain") is X
    with pytest.raises(BadValue, match="'neutral'"):
        encoding.view(X, "neutral")


def test_uniform_negatives_are_uniform_over_the_wrong_labels() -> None:
    y = torch.arange(C).repeat(4000)
    wrong = LabelOverlay(C).draw(y, stream())
    assert not (wrong == y).any()
    for label in range(C):
        counts = torch.bincount(wrong[y == label], minlength=C).tolist()
        assert counts.pop(label) == 0
        assert chisquare(counts).pvalue > 1e-3


def test_permuted_negatives_are_a_permutation_of_the_labels() -> None:
    y = torch.arange(C).repeat(4000)
    wrong = LabelOverlay(C, negatives="permuted").draw(y, stream())
    assert torch.equal(wrong.sort().values, y.sort().values)
    # 20 000 labels: the share of correct ones is within 4 standard deviations, 0.011, of 1 / C.
    assert (wrong == y).float().mean().item() == pytest.approx(1 / C, abs=0.011)


def test_hard_negatives_have_the_distribution_of_the_classifier() -> None:
    n = 20_000
    y = torch.full((n,), 2)
    scores = torch.tensor([0.0, 1.0, 9.0, 2.0, -1.0], dtype=torch.float64).expand(n, C)
    wrong = LabelOverlay(C, negatives="hard").draw(y, stream(), scores)
    counts = torch.bincount(wrong, minlength=C).tolist()
    assert counts[2] == 0
    expected = scores[0].exp()
    expected[2] = 0
    expected = expected / expected.sum() * n
    others = [0, 1, 3, 4]
    assert chisquare([counts[i] for i in others], [expected[i].item() for i in others]).pvalue > 1e-3


def test_hard_negatives_are_wrong_if_the_classifier_is_certain() -> None:
    scores = torch.full((1000, C), -1e4).index_fill(1, torch.tensor([2]), 1e4)
    wrong = LabelOverlay(C, negatives="hard").draw(torch.full((1000,), 2), stream(), scores)
    assert set(wrong.tolist()) == {0, 1, 3, 4}


def test_hard_negatives_need_a_classifier() -> None:
    with pytest.raises(BadValue, match="classifier"):
        LabelOverlay(C, negatives="hard").draw(Y, stream())


@pytest.mark.parametrize("negatives", ["uniform", "permuted"])
def test_negatives_depend_on_the_generator(negatives: Any) -> None:
    encoding = LabelOverlay(C, negatives=negatives)
    y = torch.arange(C).repeat(20)
    assert torch.equal(encoding.draw(y, stream(3)), encoding.draw(y, stream(3)))
    assert not torch.equal(encoding.draw(y, stream(3)), encoding.draw(y, stream(4)))


def test_positive_rows_come_first_and_have_target_1() -> None:
    encoding = LabelOverlay(C, scale=0.7)
    wrong = encoding.draw(Y, stream())
    rows, target = encoding.encode(X, Y, wrong)
    assert target.tolist() == [1] * B + [0] * B
    encoded = dense(rows)
    assert encoded.shape == (2 * B, 3, 4)
    for i, row in enumerate(encoded):
        label = Y[i] if i < B else wrong[i - B]
        expected = X[i % B].flatten().clone()
        expected[:C] = 0
        expected[label] = 0.7
        assert torch.equal(row.flatten(), expected)


def test_samples_are_not_modified() -> None:
    before = X.clone()
    encoding = LabelOverlay(C)
    dense(encoding.encode(X, Y, encoding.draw(Y, stream()))[0])
    dense(encoding.view(X, "candidates"))
    assert torch.equal(X, before)


def test_the_neutral_code_is_uniform_and_sums_to_the_scale() -> None:
    encoded = dense(LabelOverlay(C, scale=2.0).view(X, "neutral"))
    assert encoded.shape == X.shape
    codes = encoded.flatten(1)[:, :C]
    torch.testing.assert_close(codes, torch.full((B, C), 2.0 / C))
    torch.testing.assert_close(codes.sum(1), torch.full((B,), 2.0))
    assert torch.equal(encoded.flatten(1)[:, C:], X.flatten(1)[:, C:])


def test_candidates_have_each_label_in_turn() -> None:
    encoding = LabelOverlay(C)
    encoded = dense(encoding.view(X, "candidates"))
    assert encoded.shape == (C * B, 3, 4)
    for label in range(C):
        one = encoding.encode(X, torch.full_like(Y, label), Y)[0]
        assert torch.equal(encoded[label * B : (label + 1) * B], dense(one)[:B])


def test_unsupported_views_and_codes_larger_than_the_input_are_refused() -> None:
    with pytest.raises(BadValue, match="without a label"):
        LabelOverlay(C).view(X, "plain")
    with pytest.raises(BadValue, match="12 label values does not fit into an input of 12"):
        LabelOverlay(12).view(X, "neutral")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("view", ["pair", "neutral", "candidates"])
def test_overlaid_linear_equals_the_dense_layer(view: Any, bias: bool) -> None:
    torch.manual_seed(0)
    encoding = LabelOverlay(C, scale=0.6)
    layer = OverlaidLinear(nn.Linear(12, 7, bias=bias)).double()
    x = X.double().requires_grad_()
    if view == "pair":
        rows: Any = encoding.encode(x, Y, encoding.draw(Y, stream()))[0]
    else:
        rows = encoding.view(x, view)
    parameters = [*layer.parameters(), x]
    out = layer(rows)
    upstream = torch.randn(out.shape, dtype=torch.float64)
    gradients = torch.autograd.grad((out * upstream).sum(), parameters)
    plain = layer.linear(LengthNorm()(rows.dense().flatten(1)))
    expected = torch.autograd.grad((plain * upstream).sum(), parameters)
    torch.testing.assert_close(out, plain)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other)


def test_dense_rows_returns_all_rows() -> None:
    rows = LabelOverlay(C).view(X, "candidates")
    assert torch.equal(DenseRows()(rows), rows.dense())


# ---- label slots -----------------------------------------------------------------------------------------


def slots(**options: Any) -> LabelSlots:
    encoding = LabelSlots(C, **options)
    encoding.amplitude.fill_(3.0)
    return encoding


def test_rows_are_the_scaled_one_hot_label_and_the_sample() -> None:
    encoding = slots()
    wrong = encoding.draw(Y, stream())
    rows, target = encoding.encode(X, Y, wrong)
    assert rows.shape == (2 * B, C + 12)
    assert torch.equal(rows[:, C:], X.flatten(1).repeat(2, 1))
    labels = torch.cat([Y, wrong[:, 0]])
    assert torch.equal(rows[:, :C], 3.0 * torch.nn.functional.one_hot(labels, C))
    assert target.tolist() == [1] * B + [0] * B


def test_negatives_are_one_random_wrong_label_or_all_wrong_labels() -> None:
    y = torch.arange(C).repeat(2000)
    wrong = slots().draw(y, stream())[:, 0]
    assert not (wrong == y).any()
    counts = torch.stack([(wrong[y == 2] == c).sum() for c in range(C) if c != 2])
    assert chisquare(counts.numpy()).pvalue > 1e-3
    all_wrong = slots(negatives="all").draw(Y, stream())
    assert [
        sorted([label, *others]) for label, others in zip(Y.tolist(), all_wrong.tolist(), strict=True)
    ] == [list(range(C))] * B


@pytest.mark.parametrize("negatives", ["random", "all"])
def test_encoded_rows_are_the_chosen_variants(negatives: Any) -> None:
    encoding = slots(negatives=negatives)
    wrong = encoding.draw(Y, stream(3))
    rows, target = encoding.encode(X, Y, wrong)
    variants = encoding.variants(X).unflatten(0, (C, B))
    chosen, same = encoding.chosen_variants(Y, wrong)
    assert torch.equal(variants[chosen, torch.arange(B)].flatten(0, 1), rows)
    assert torch.equal(target, same)


def test_candidates_have_each_label_and_neutral_rows_have_none() -> None:
    encoding = slots()
    rows = encoding.view(X, "candidates").unflatten(0, (C, B))
    assert torch.equal(rows[:, :, :C], 3.0 * torch.eye(C).unsqueeze(1).expand(-1, B, -1))
    assert encoding.view(X, "neutral")[:, :C].abs().sum() == 0


# ---- old names -------------------------------------------------------------------------------------------


def test_old_names_are_accepted_with_a_warning() -> None:
    encoding = slots()
    with pytest.warns(FutureWarning, match=r"LabelSlots\.labelled is now LabelSlots\.labeled"):
        rows = encoding.labelled(X, Y.unsqueeze(0))
    assert torch.equal(rows, encoding.labeled(X, Y.unsqueeze(0)))
    with pytest.warns(FutureWarning, match=r"LabelledLayer is now .*LabeledLayer"):
        assert label_overlay.LabelledLayer is label_overlay.LabeledLayer
    with pytest.warns(FutureWarning, match=r"Old\.answers is now Old\.metric_targets"):
        old = type("Old", (Encoding,), {"answers": lambda self, data: data.y + 1})
    assert torch.equal(old().metric_targets(TensorData(X, Y, C)), Y + 1)
