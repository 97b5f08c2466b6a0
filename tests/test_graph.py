"""Graphs and their operators against dense matrices, and what nodes keep of what was made of them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from bpfree import BadValue
from bpfree.graph import Graph, Nodes, unit_rows
from bpfree.sparse import SparseMatrix, times
from tests.helpers import make_gnn, nodes


def dense(graph: Graph) -> Tensor:
    """The adjacency, ``[target, source]``."""
    found = torch.zeros(graph.n_nodes, graph.n_nodes)
    found[graph.edge_index[1], graph.edge_index[0]] = 1.0
    return found


def test_the_gcn_operator_is_torch_geometrics() -> None:
    make_gnn().make_layers([1], [1])  # imports torch-geometric without its warning
    from torch_geometric.nn.conv.gcn_conv import gcn_norm

    directed = Graph(torch.tensor([[0, 1, 2, 3, 3], [1, 2, 0, 0, 3]]), 5)
    for graph in (nodes().graph, directed):
        index, weight = gcn_norm(graph.edge_index, None, graph.n_nodes, add_self_loops=True)
        expected = torch.zeros(graph.n_nodes, graph.n_nodes)
        expected[index[1], index[0]] = weight
        torch.testing.assert_close(graph.operator("gcn").dense(), expected)


def test_the_mean_operator_is_the_mean_over_sources_and_zero_without_any() -> None:
    graph = Graph(torch.tensor([[0, 1, 2], [3, 3, 0]]), 4)
    expected = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0.5, 0.5, 0, 0]])
    assert torch.equal(graph.operator("mean").dense(), expected)


def test_bad_edges_are_refused() -> None:
    with pytest.raises(BadValue, match=r"0\.\.7.*0\.\.3"):
        Graph(torch.tensor([[0, 7], [1, 2]]), 4)
    with pytest.raises(BadValue, match="float"):
        Graph(torch.zeros(2, 3), 4)
    with pytest.raises(BadValue, match="'mode'"):
        Graph(torch.tensor([[0], [1]]), 2).operator("mode")


def counted(calls: list[int]):  # type: ignore[no-untyped-def]
    def make(states: Tensor, graph: Graph) -> Tensor:
        calls.append(1)
        return graph.operator("gcn") @ states

    return make


def test_rows_of_a_matrix_are_picked_in_any_order() -> None:
    operator = nodes().graph.operator("gcn")
    at = torch.tensor([5, 0, 59, 5])
    assert torch.equal(operator.picked(at).dense(), operator.dense()[at])
    assert torch.equal(operator.rows(slice(7, 12)).dense(), operator.dense()[7:12])


def test_what_a_front_made_is_made_again_for_another_input_or_graph_alone() -> None:
    data, calls = nodes(), []
    make = counted(calls)
    here = Nodes((data.features,), (data.graph,))
    wanted = torch.tensor([5, 2, 9])
    first = here.wanting(wanted).rows("front", make)
    again = here.wanting(torch.tensor([1])).rows("front", make)
    assert len(calls) == 1
    assert isinstance(first, Tensor) and isinstance(again, Tensor)
    torch.testing.assert_close(first, (data.graph.operator("gcn").dense() @ data.features)[wanted])
    here.rows("another front", make)
    assert len(calls) == 2
    here.up(data.features * 2).rows("front", make)
    Nodes((data.features,), (data.graph.with_edges(torch.tensor([[0], [1]]), 60),)).rows("front", make)
    assert len(calls) == 4


def test_rows_that_are_kept_are_the_very_same_and_sparse_ones_are_sparse() -> None:
    features = torch.eye(60)
    here = Nodes((features,), (nodes().graph,), sparse=True).wanting(torch.arange(20), keeps=True)
    made = here.rows("front", lambda states, _: states)
    assert isinstance(made, SparseMatrix)
    assert torch.equal(made.dense(), features[:20])
    assert here.rows("front", lambda states, _: states) is made
    unkept = Nodes((features,), (nodes().graph,), memo=None).wanting(torch.arange(20), keeps=True)
    assert unkept.rows("front", lambda s, _: s) is not unkept.rows("front", lambda s, _: s)


def test_views_go_up_each_or_led_by_the_first() -> None:
    data = nodes()
    other = data.graph.with_edges(torch.tensor([[0], [1]]), 60)
    output = torch.arange(120.0).view(120, 1)
    apart = Nodes((data.features,), (data.graph, other)).up(output)
    assert [state[0].item() for state in apart.states] == [0.0, 60.0]
    led = Nodes((data.features,), (data.graph, other), leads=True)
    assert led.whole().views == 1
    raised = led.up(output[:60])
    assert (raised.views, len(raised.states)) == (2, 1)


def test_edges_of_asked_nodes_are_all_that_point_to_them_and_their_own_loops() -> None:
    data = nodes()
    wanted = torch.tensor([3, 40])
    edges = Nodes((data.features,), (data.graph, data.graph)).wanting(wanted).edges()
    source, target = edges.source, edges.target
    assert (edges.own.tolist(), edges.n_sources) == ([3, 40, 63, 100], 120)
    for row, (node, view) in enumerate([(3, 0), (40, 0), (3, 1), (40, 1)]):
        expected = set(dense(data.graph)[node].nonzero().squeeze(1).tolist()) | {node}
        assert set((source[target == row] - 60 * view).tolist()) == expected


def test_copies_share_what_never_changes_and_unit_rows_have_length_one() -> None:
    data = nodes()
    assert copy.deepcopy(data.graph) is data.graph
    lengths = unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).norm(dim=1)
    torch.testing.assert_close(lengths, torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_states_in_codes_are_propagated_as_if_they_were_written_out(normalize: bool, shared: bool) -> None:
    data = nodes()
    generator = torch.Generator().manual_seed(0)
    base = data.features * (torch.rand(60, 12, generator=generator) < 0.05)
    book = torch.rand(2, 12, generator=generator)
    codes = [torch.eye(2).repeat(30, 1), torch.eye(2).flip(0).repeat(30, 1)]
    other = data.graph.with_edges(torch.tensor([[0, 3], [1, 2]]), 60)
    graphs = (data.graph,) if shared else (data.graph, other)
    apart = Nodes((base,), graphs, codes=tuple(codes), book=book)
    whole = Nodes(tuple(base + code @ book for code in codes), graphs)
    weight = torch.rand(5, 12, generator=generator)
    for wanted, keeps in ((None, True), (torch.tensor([2, 40, 7]), True), (torch.tensor([5, 1]), False)):
        found, expected = (
            times(at.wanting(wanted, keeps).rows("front", make, normalize), weight)
            for at, make in ((apart, counted([])), (whole, counted([])))
        )
        torch.testing.assert_close(found, expected)
