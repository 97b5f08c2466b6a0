"""Graph layers against torch-geometric; hop features against powers of the operator."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from bpfree import BadValue
from bpfree.graph import Graph, Nodes, unit_rows
from bpfree.nn import GNN, EndToEndGNN, Hops, learned_part
from bpfree.sparse import Propagated
from tests.helpers import nodes


@pytest.mark.parametrize("kind", ["gcn", "sage", "gat"])
@pytest.mark.parametrize("directed", [False, True])
def test_a_layer_matches_torch_geometric_for_all_and_for_some_nodes(kind: Any, directed: bool) -> None:
    torch.manual_seed(0)
    data = nodes()
    edges = data.graph.edge_index[:, ::3] if directed else data.graph.edge_index
    net = GNN(kind, [16])
    (conv,) = net.make_layers([12], [16])
    front, body = learned_part(net, conv)
    expected = conv(unit_rows(data.features), edges).relu()
    nodes_in = Nodes((data.features,), (Graph(edges, 60),))
    for wanted in (None, torch.tensor([7, 0, 31])):
        targets = nodes_in.wanting(wanted)
        result = body(targets if front is None else front(targets))
        torch.testing.assert_close(result, expected if wanted is None else expected[wanted])


@pytest.mark.parametrize("kind", ["gcn", "sage"])
@pytest.mark.parametrize("codes", [False, True])
def test_sparse_states_that_are_used_once_are_propagated_after_the_weights(kind: Any, codes: bool) -> None:
    torch.manual_seed(0)
    data = nodes()
    few = data.features * (torch.rand(60, 12) < 0.05)
    other = data.graph.with_edges(torch.tensor([[0, 3], [1, 2]]), 60)
    code, book = torch.eye(2).repeat(30, 1), torch.rand(2, 12)
    nodes_in = replace(Nodes((few,), (data.graph, other), memo=None), sparse=True)
    states = few
    if codes:
        nodes_in, states = replace(nodes_in, codes=(code,), book=book), few + code @ book
    net = GNN(kind, [16])
    (conv,) = net.make_layers([12], [16])
    front, body = learned_part(net, conv)
    assert front is not None
    for wanted in (None, torch.tensor([7, 0, 31])):
        rows = front(nodes_in.wanting(wanted))
        assert isinstance(rows, Propagated)
        at = slice(None) if wanted is None else wanted
        expected = [conv(unit_rows(states), graph.edge_index)[at].relu() for graph in (data.graph, other)]
        assert rows.shape == (2 * len(expected[0]), 12 if kind == "gcn" else 24)
        torch.testing.assert_close(body(rows), torch.cat(expected))
        weight = torch.rand(2 * len(expected[0]), 16)
        ours = torch.autograd.grad((body(rows) * weight).sum(), list(conv.parameters()))
        theirs = torch.autograd.grad((torch.cat(expected) * weight).sum(), list(conv.parameters()))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    kept = replace(nodes_in, memo={}).wanting(torch.arange(4), keeps=True)
    assert not isinstance(front(kept), Propagated)


@pytest.mark.parametrize("kind", ["gcn", "sage", "gat"])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_network_and_its_gradients_match_torch_geometric(kind: Any, sparse: bool) -> None:
    torch.manual_seed(0)
    data = nodes()
    x = data.features * (torch.rand(60, 12) < 0.05) if sparse else data.features
    net = GNN(kind, [16, 8])
    net.make_layers([12, 16], [16, 8])
    result = EndToEndGNN(net, normalize=False)(Nodes((x,), (data.graph,)))
    expected = net(x, data.graph.edge_index)
    torch.testing.assert_close(result, expected)
    weights = list(net.parameters())
    weight = torch.rand(60, 8)
    ours = torch.autograd.grad((result * weight).sum(), weights)
    theirs = torch.autograd.grad((expected * weight).sum(), weights)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sparse", [False, True])
def test_dropout_is_active_in_training_only(sparse: bool) -> None:
    torch.manual_seed(0)
    data = nodes()
    net = GNN("gcn", [400])
    (conv,) = net.make_layers([60], [400])
    nodes_in = Nodes((torch.eye(60),), (data.graph,), sparse=sparse)
    model = EndToEndGNN(net, normalize=False, dropout=0.5)
    plain = model.eval()(nodes_in)
    torch.testing.assert_close(plain, conv(torch.eye(60), data.graph.edge_index))
    mean = torch.stack([model.train()(nodes_in) for _ in range(300)]).mean(0)
    assert (model(nodes_in) - plain).abs().max() > 0.01
    torch.testing.assert_close(mean, plain, rtol=0.0, atol=0.15)


def test_hop_features_are_powers_of_the_operator() -> None:
    data = nodes()
    a, x = data.graph.operator("gcn").dense(), unit_rows(data.features)
    result = Hops(2)(Nodes((data.features,), (data.graph,)))
    torch.testing.assert_close(result, torch.cat([x, a @ x, a @ a @ x], 1))


def test_invalid_kinds_and_widths_are_refused() -> None:
    for kind, hidden, word in (("gin", [16], "gin"), ("gcn", [], "hidden"), ("gcn", [16, 0], "hidden")):
        with pytest.raises(BadValue, match=word):
            GNN(kind, hidden)  # type: ignore[arg-type]


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(BadValue, match="heads = 3"):
        GNN("gat", [16], heads=3)


@pytest.mark.parametrize("kind", ["gcn", "sage", "gat"])
@pytest.mark.parametrize("sparse", [False, True])
def test_gradients_have_the_strides_of_their_weights(kind: Any, sparse: bool) -> None:
    # A fused optimizer pairs weights, gradients and moments by their position in memory.
    data = nodes()
    x = data.features * (torch.rand(60, 12) < 0.05) if sparse else data.features
    net = GNN(kind, [16])
    (conv,) = net.make_layers([12], [16])
    front, body = learned_part(net, conv)
    for wanted in (None, torch.tensor([7, 0, 31])):
        targets = Nodes((x,), (data.graph,), sparse=sparse).wanting(wanted, keeps=True)
        body(targets if front is None else front(targets)).square().sum().backward()
        for p in conv.parameters():
            assert p.grad is not None
            assert p.grad.stride() == p.stride()
            p.grad = None
