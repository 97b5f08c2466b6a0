"""Front and body of a layer compute torch-geometric's layer; hop features are powers of the operator."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from bpfree import BadValue
from bpfree.graphs.cache import NodeCache
from bpfree.graphs.graph import Graph, unit_rows
from bpfree.graphs.matrices import Propagated
from bpfree.graphs.nodes import NodeQuery, Nodes
from bpfree.graphs.states import NodeStates
from bpfree.nn import GNN, EndToEndGNN, Hops, learned_part
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
    inputs = Nodes(NodeStates((data.features,), (Graph(edges, 60),)))
    for numbers in (None, torch.tensor([7, 0, 31])):
        queried = inputs.with_query(NodeQuery(numbers))
        output = body(queried if front is None else front(queried))
        torch.testing.assert_close(output, expected if numbers is None else expected[numbers])


@pytest.mark.parametrize("kind", ["gcn", "sage"])
@pytest.mark.parametrize("codes", [False, True])
def test_sparse_states_of_a_single_query_are_propagated_after_the_weights(kind: Any, codes: bool) -> None:
    torch.manual_seed(0)
    data = nodes()
    few = data.features * (torch.rand(60, 12) < 0.05)
    other = data.graph.with_edges(torch.tensor([[0, 3], [1, 2]]), 60)
    code, codebook = torch.eye(2).repeat(30, 1), torch.rand(2, 12)
    states = NodeStates((few,), (data.graph, other), sparse=True)
    expected_states = few
    if codes:
        states, expected_states = replace(states, codes=(code,), codebook=codebook), few + code @ codebook
    net = GNN(kind, [16])
    (conv,) = net.make_layers([12], [16])
    front, body = learned_part(net, conv)
    assert front is not None
    for numbers in (None, torch.tensor([7, 0, 31])):
        rows = front(Nodes(states, NodeQuery(numbers), NodeCache(enabled=False)))
        assert isinstance(rows, Propagated)
        index = slice(None) if numbers is None else numbers
        x = unit_rows(expected_states)
        expected = [conv(x, graph.edge_index)[index].relu() for graph in (data.graph, other)]
        assert rows.shape == (2 * len(expected[0]), 12 if kind == "gcn" else 24)
        torch.testing.assert_close(body(rows), torch.cat(expected))
        grad = torch.rand(2 * len(expected[0]), 16)
        ours = torch.autograd.grad((body(rows) * grad).sum(), list(conv.parameters()))
        theirs = torch.autograd.grad((torch.cat(expected) * grad).sum(), list(conv.parameters()))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    repeated = Nodes(states, NodeQuery(torch.arange(4), repeated=True))
    assert not isinstance(front(repeated), Propagated)


@pytest.mark.parametrize("kind", ["gcn", "sage", "gat"])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_network_and_its_gradients_match_torch_geometric(kind: Any, sparse: bool) -> None:
    torch.manual_seed(0)
    data = nodes()
    x = data.features * (torch.rand(60, 12) < 0.05) if sparse else data.features
    net = GNN(kind, [16, 8])
    net.make_layers([12, 16], [16, 8])
    output = EndToEndGNN(net, normalize=False)(Nodes(NodeStates((x,), (data.graph,))))
    expected = net(x, data.graph.edge_index)
    torch.testing.assert_close(output, expected)
    weights = list(net.parameters())
    grad = torch.rand(60, 8)
    ours = torch.autograd.grad((output * grad).sum(), weights)
    theirs = torch.autograd.grad((expected * grad).sum(), weights)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sparse", [False, True])
def test_dropout_is_active_in_training_only(sparse: bool) -> None:
    torch.manual_seed(0)
    data = nodes()
    net = GNN("gcn", [400])
    (conv,) = net.make_layers([60], [400])
    inputs = Nodes(NodeStates((torch.eye(60),), (data.graph,), sparse=sparse))
    whole = EndToEndGNN(net, normalize=False, dropout=0.5)
    plain = whole.eval()(inputs)
    torch.testing.assert_close(plain, conv(torch.eye(60), data.graph.edge_index))
    mean = torch.stack([whole.train()(inputs) for _ in range(300)]).mean(0)
    assert (whole(inputs) - plain).abs().max() > 0.01
    torch.testing.assert_close(mean, plain, rtol=0.0, atol=0.15)


def test_hop_features_are_powers_of_the_operator() -> None:
    data = nodes()
    a, x = data.graph.operator("gcn").dense(), unit_rows(data.features)
    features = Hops(2)(Nodes(NodeStates((data.features,), (data.graph,))))
    torch.testing.assert_close(features, torch.cat([x, a @ x, a @ a @ x], 1))


def test_unknown_kinds_and_bad_widths_are_refused() -> None:
    for kind, hidden, word in (("gin", [16], "gin"), ("gcn", [], "hidden"), ("gcn", [16, 0], "hidden")):
        with pytest.raises(BadValue, match=word):
            GNN(kind, hidden)  # type: ignore[arg-type]


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(BadValue, match="heads = 3"):
        GNN("gat", [16], heads=3)


@pytest.mark.parametrize("kind", ["gcn", "sage", "gat"])
@pytest.mark.parametrize("sparse", [False, True])
def test_gradients_have_the_memory_layout_of_their_weights(kind: Any, sparse: bool) -> None:
    # A fused optimizer pairs values of weights, gradients and moments by their position in memory.
    data = nodes()
    x = data.features * (torch.rand(60, 12) < 0.05) if sparse else data.features
    net = GNN(kind, [16])
    (conv,) = net.make_layers([12], [16])
    front, body = learned_part(net, conv)
    for numbers in (None, torch.tensor([7, 0, 31])):
        states = NodeStates((x,), (data.graph,), sparse=sparse)
        inputs = Nodes(states, NodeQuery(numbers, repeated=True))
        body(inputs if front is None else front(inputs)).square().sum().backward()
        for p in conv.parameters():
            assert p.grad is not None
            assert p.grad.stride() == p.stride()
            p.grad = None


def test_the_old_name_of_make_layers_is_accepted() -> None:
    net = GNN("gcn", [16])
    with pytest.warns(FutureWarning, match="make_layers"):
        (conv,) = net.grow([12], [16])
    assert conv.lin.weight.shape == (16, 12)
