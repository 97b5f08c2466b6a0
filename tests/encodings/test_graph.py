"""Virtual nodes, and labels as features and as edges: states, graphs and queries."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch

from bpfree import BadValue
from bpfree.encodings.graph import GraphEncoding, Pairs
from bpfree.encodings.graph_labels import AppendedLabels, LinkedLabels
from bpfree.encodings.virtual_nodes import VirtualNodes
from tests.helpers import CLASSES, nodes, pairs

DATA = nodes()
PARTS: Any = (DATA.features, DATA.graph, DATA.ids, DATA.y, CLASSES)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("direction", ["one_way", "both_ways"])
def test_virtual_edges_come_from_training_labels_alone(direction: Any) -> None:
    states = VirtualNodes(*PARTS, direction, "random", generator()).states(None)
    added = states.graphs[0].edge_index[:, DATA.graph.n_edges :]
    assert added.shape[1] == len(DATA) * (1 if direction == "one_way" else 2)
    expected = {(int(i), 60 + int(k)) for i, k in zip(DATA.ids, DATA.y, strict=True)}
    if direction == "both_ways":
        expected |= {(b, a) for a, b in expected}
    assert {(int(a), int(b)) for a, b in added.T} == expected
    assert states.n_nodes == 63
    assert torch.equal(states.dense(0)[:60], DATA.features)


def test_virtual_features_are_drawn_once_or_zero() -> None:
    first, again = (VirtualNodes(*PARTS, "one_way", "random", generator()).states(None) for _ in range(2))
    assert torch.equal(first.dense(0), again.dense(0))
    assert first.dense(0)[60:].abs().min() > 0
    assert not VirtualNodes(*PARTS, "one_way", "zero").states(None).dense(0)[60:].any()


def test_the_targets_of_a_step_are_its_nodes_and_the_virtual_ones_last() -> None:
    encoding = VirtualNodes(*PARTS)
    some, target = encoding.encode(DATA.ids[3:5], DATA.y[3:5], None)
    assert some.query.target_nodes is not None
    assert some.query.target_nodes.tolist() == [*DATA.ids[3:5].tolist(), 60, 61, 62]
    assert not some.query.repeated
    assert torch.equal(target, DATA.y[3:5])
    order = torch.randperm(len(DATA))
    full, target = encoding.encode(DATA.ids[order], DATA.y[order], None)
    again, _ = encoding.encode(DATA.ids, DATA.y, None)
    assert full.query.target_nodes is again.query.target_nodes
    assert full.query.target_nodes is not None
    assert full.query.repeated
    assert torch.equal(full.query.target_nodes[:-3], DATA.ids) and torch.equal(target, DATA.y)


def test_a_step_on_all_nodes_has_targets_for_its_samples_alone() -> None:
    encoding = VirtualNodes(*PARTS, all_nodes=True, label_feedback=True)
    inputs, target = encoding.encode(DATA.ids[:7], DATA.y[:7], None)
    assert inputs.query.target_nodes is None
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
def test_the_first_variant_has_the_true_labels_and_the_others_each_wrong_class_once(kind: Any) -> None:
    labels = kind(*PARTS, generator()).labels
    assert labels.shape == (CLASSES, len(DATA))
    assert torch.equal(labels[0], DATA.y)
    assert torch.equal(labels.sort(0).values.T, torch.arange(CLASSES).expand(len(DATA), -1))
    target = kind(*PARTS, generator()).targets(DATA.y[:5])
    assert target.tolist() == [1] * 5 + [0] * 10


def test_appended_labels_follow_the_features() -> None:
    encoding = AppendedLabels(*PARTS, generator())
    training, candidates = encoding.states(None), encoding.states("candidates")
    rest = torch.ones(60, dtype=torch.bool)
    rest[DATA.ids] = False
    for number in range(CLASSES):
        code = training.dense(number)[:, 12:]
        assert torch.equal(code[DATA.ids].argmax(1), encoding.labels[number])
        torch.testing.assert_close(code[rest], torch.full((20, CLASSES), 1 / CLASSES))
        code = candidates.dense(number)[:, 12:]
        assert torch.equal(code[DATA.ids].argmax(1), DATA.y)
        assert (code[rest].argmax(1) == number).all() and code.sum() == 60
        assert torch.equal(candidates.dense(number)[:, :12], DATA.features)


def test_linked_labels_are_edges_and_candidates_link_the_unlabeled_nodes_alone_to_the_class() -> None:
    encoding = LinkedLabels(*PARTS, generator())
    training, candidates = encoding.states(None), encoding.states("candidates")
    assert training.pass_first_variant
    assert not candidates.pass_first_variant
    known = set(DATA.ids.tolist())
    for number in range(CLASSES):
        added = training.graphs[number].edge_index[:, DATA.graph.n_edges :]
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


def test_pairs_are_the_query_of_evaluation_and_their_ends_the_targets_of_training() -> None:
    data = pairs()
    encoding = Pairs(data.features, data.graph, data.ids, data.y, 2)
    inputs, target = encoding.encode(data.ids[:4], data.y[:4], None)
    assert inputs.query.target_nodes is None
    assert encoding.evaluation_query(data.ids).pairs is data.ids
    assert torch.equal(target[:, :2], data.ids[:4]) and torch.equal(target[:, 2], data.y[:4])


def test_unknown_input_kinds_are_refused() -> None:
    with pytest.raises(BadValue, match="candidates"):
        GraphEncoding(*PARTS).nodes("candidates")
    with pytest.raises(BadValue, match="plain"):
        AppendedLabels(*PARTS, generator()).nodes("plain")


@pytest.mark.parametrize("kind", [VirtualNodes, LinkedLabels])
def test_virtual_features_are_codes_where_the_others_are_sparse(kind: Any) -> None:
    few = DATA.features * (torch.rand(DATA.features.shape, generator=generator()) < 0.05)
    dense, coded = (kind(x, *PARTS[1:], generator=generator()).states(None) for x in (DATA.features, few))
    assert dense.codebook is None
    assert coded.codebook is not None
    assert torch.equal(coded.dense(0)[:60], few)
    assert torch.equal(coded.dense(0)[60:], dense.states[0][60:])
    assert not coded.states[0][60:].any()


def test_a_step_on_as_many_other_nodes_has_those_as_targets() -> None:
    encoding = VirtualNodes(*PARTS)
    for ids in (DATA.ids[:5], DATA.ids[5:10], DATA.ids[:5]):
        inputs, _ = encoding.encode(ids, DATA.y[: len(ids)], None)
        assert inputs.query.target_nodes is not None
        assert inputs.query.target_nodes[:-3].tolist() == ids.tolist()


def test_inputs_with_the_same_states_share_a_cache_as_long_as_one_of_them_lives() -> None:
    encoding = GraphEncoding(*PARTS)
    first, second = encoding.nodes(None), encoding.nodes("plain")
    assert first.cache is second.cache
    assert not encoding.nodes(None, cache=False).cache.enabled
    first.cache.put("key", 1)
    assert copy.deepcopy(encoding).nodes(None).cache.get("key") is None
    del first, second
    gc.collect()
    assert encoding.nodes(None).cache.get("key") is None
