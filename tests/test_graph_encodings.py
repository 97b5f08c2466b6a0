"""Virtual nodes, labels as features and as edges: what is shown, and of whom."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bpfree import BadValue
from bpfree.graph_encodings import AppendedLabels, GraphEncoding, LinkedLabels, Pairs, VirtualNodes
from bpfree.metrics import ROC_AUC
from tests.helpers import CLASSES, nodes, pairs

DATA = nodes()
PARTS: Any = (DATA.features, DATA.graph, DATA.ids, DATA.y, CLASSES)


def stream() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("direction", ["one_way", "both_ways"])
def test_virtual_edges_come_from_training_labels_alone(direction: Any) -> None:
    shown = VirtualNodes(*PARTS, direction, "random", stream()).nodes(None)
    added = shown.graphs[0].edge_index[:, DATA.graph.n_edges :]
    assert added.shape[1] == len(DATA) * (1 if direction == "one_way" else 2)
    expected = {(int(i), 60 + int(k)) for i, k in zip(DATA.ids, DATA.y, strict=True)}
    if direction == "both_ways":
        expected |= {(b, a) for a, b in expected}
    assert {(int(a), int(b)) for a, b in added.T} == expected
    assert shown.n_nodes == 63
    assert torch.equal(shown.full(0)[:60], DATA.features)


def test_virtual_features_are_drawn_once_or_zero() -> None:
    first, again = (VirtualNodes(*PARTS, "one_way", "random", stream()).nodes(None) for _ in range(2))
    assert torch.equal(first.full(0), again.full(0))
    assert first.full(0)[60:].abs().min() > 0
    assert not VirtualNodes(*PARTS, "one_way", "zero").nodes(None).full(0)[60:].any()


def test_a_step_asks_about_its_nodes_and_the_virtual_ones_last() -> None:
    encoding = VirtualNodes(*PARTS)
    some, target = encoding.encode(DATA.ids[3:5], DATA.y[3:5], None)
    assert some.wanted is not None
    assert some.wanted.tolist() == [*DATA.ids[3:5].tolist(), 60, 61, 62]
    assert torch.equal(target, DATA.y[3:5])
    order = torch.randperm(len(DATA))
    whole, target = encoding.encode(DATA.ids[order], DATA.y[order], None)
    again, _ = encoding.encode(DATA.ids, DATA.y, None)
    assert whole.wanted is again.wanted
    assert whole.wanted is not None
    assert torch.equal(whole.wanted[:-3], DATA.ids) and torch.equal(target, DATA.y)


def test_everywhere_asks_about_all_and_tells_no_label_but_those_of_the_step() -> None:
    encoding = VirtualNodes(*PARTS, everywhere=True, tells=True)
    found, target = encoding.encode(DATA.ids[:7], DATA.y[:7], None)
    assert found.wanted is None
    assert torch.equal(target[DATA.ids[:7]], DATA.y[:7])
    assert int((target >= 0).sum()) == 7 and len(target) == 60
    message = encoding.message()
    assert message is not None
    assert torch.equal(message[DATA.ids].argmax(1), DATA.y)
    rest = torch.ones(60, dtype=torch.bool)
    rest[DATA.ids] = False
    torch.testing.assert_close(message[:60][rest], torch.full((20, CLASSES), 1 / CLASSES))
    assert torch.equal(message[60:], torch.eye(CLASSES))


@pytest.mark.parametrize("kind", [AppendedLabels, LinkedLabels])
def test_the_first_view_is_true_and_the_others_show_each_wrong_class_once(kind: Any) -> None:
    labels = kind(*PARTS, stream()).labels
    assert labels.shape == (CLASSES, len(DATA))
    assert torch.equal(labels[0], DATA.y)
    assert torch.equal(labels.sort(0).values.T, torch.arange(CLASSES).expand(len(DATA), -1))
    target = kind(*PARTS, stream()).targets(DATA.y[:5])
    assert target.tolist() == [1] * 5 + [0] * 10


def test_appended_labels_stand_behind_the_features() -> None:
    encoding = AppendedLabels(*PARTS, stream())
    shown, candidates = encoding.nodes(None), encoding.nodes("candidates")
    rest = torch.ones(60, dtype=torch.bool)
    rest[DATA.ids] = False
    for number in range(CLASSES):
        code = shown.full(number)[:, 12:]
        assert torch.equal(code[DATA.ids].argmax(1), encoding.labels[number])
        torch.testing.assert_close(code[rest], torch.full((20, CLASSES), 1 / CLASSES))
        code = candidates.full(number)[:, 12:]
        assert torch.equal(code[DATA.ids].argmax(1), DATA.y)
        assert (code[rest].argmax(1) == number).all() and code.sum() == 60
        assert torch.equal(candidates.full(number)[:, :12], DATA.features)


def test_linked_labels_are_edges_and_candidates_link_the_unknown_nodes_alone_to_the_class() -> None:
    encoding = LinkedLabels(*PARTS, stream())
    shown, candidates = encoding.nodes(None), encoding.nodes("candidates")
    assert shown.leads and not candidates.leads
    known = set(DATA.ids.tolist())
    for number in range(CLASSES):
        added = shown.graphs[number].edge_index[:, DATA.graph.n_edges :]
        pairs_ = {(int(a), int(b)) for a, b in added.T if b >= 60}
        expected = zip(DATA.ids.tolist(), encoding.labels[number].tolist(), strict=True)
        assert pairs_ == {(i, 60 + k) for i, k in expected}
        added = candidates.graphs[number].edge_index[:, DATA.graph.n_edges :]
        linked = {(int(a), int(b) - 60) for a, b in added.T if b >= 60}
        assert {(a, b) for a, b in linked if a in known} == set(
            zip(DATA.ids.tolist(), DATA.y.tolist(), strict=True)
        )
        assert {(a, b) for a, b in linked if a not in known} == {
            (i, number) for i in range(60) if i not in known
        }


def test_pairs_are_judged_by_the_area_under_the_roc() -> None:
    data = pairs()
    encoding = Pairs(data.features, data.graph, data.ids, data.y, 2)
    scores = torch.tensor([[0.1], [0.4], [0.35], [0.8]])
    assert ROC_AUC(scores, torch.tensor([0, 0, 1, 1])) == 0.75
    found, target = encoding.encode(data.ids[:4], data.y[:4], None)
    assert found.wanted is None
    assert torch.equal(target[:, :2], data.ids[:4]) and torch.equal(target[:, 2], data.y[:4])


def test_views_that_there_are_not_are_refused() -> None:
    with pytest.raises(BadValue, match="candidates"):
        GraphEncoding(*PARTS).nodes("candidates")
    with pytest.raises(BadValue, match="plain"):
        AppendedLabels(*PARTS, stream()).nodes("plain")


@pytest.mark.parametrize("kind", [VirtualNodes, LinkedLabels])
def test_sparse_features_and_virtual_ones_are_kept_apart_and_mean_the_same(kind: Any) -> None:
    few = DATA.features * (torch.rand(DATA.features.shape, generator=stream()) < 0.05)
    dense, apart = (kind(x, *PARTS[1:], generator=stream()).nodes(None) for x in (DATA.features, few))
    assert dense.book is None and apart.book is not None
    assert torch.equal(apart.full(0)[:60], few)
    assert torch.equal(apart.full(0)[60:], dense.states[0][60:])
    assert not apart.states[0][60:].any()


def test_a_step_of_other_nodes_of_equal_number_asks_about_those() -> None:
    encoding = VirtualNodes(*PARTS)
    for ids in (DATA.ids[:5], DATA.ids[5:10], DATA.ids[:5]):
        found, _ = encoding.encode(ids, DATA.y[: len(ids)], None)
        assert found.wanted is not None
        assert found.wanted[:-3].tolist() == ids.tolist()
