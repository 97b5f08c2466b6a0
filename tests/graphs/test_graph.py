"""Graphs and their operators against dense matrices."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from bpfree import BadValue
from bpfree.graphs.graph import Graph, unit_rows
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


def test_rows_of_a_matrix_are_selected_in_any_order() -> None:
    operator = nodes().graph.operator("gcn")
    index = torch.tensor([5, 0, 59, 5])
    assert torch.equal(operator.select_rows(index).dense(), operator.dense()[index])
    assert torch.equal(operator.slice_rows(slice(7, 12)).dense(), operator.dense()[7:12])


def test_a_copy_of_a_graph_is_the_graph_and_unit_rows_have_length_one() -> None:
    data = nodes()
    assert copy.deepcopy(data.graph) is data.graph
    lengths = unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).norm(dim=1)
    torch.testing.assert_close(lengths, torch.tensor([1.0, 0.0]))


def test_a_disjoint_union_has_both_graphs_and_no_edge_between_them() -> None:
    first, second = Graph(torch.tensor([[0], [1]]), 2), Graph(torch.tensor([[0, 2], [1, 0]]), 3)
    union = first.disjoint_union(second)
    assert union.n_nodes == 5
    expected = torch.block_diag(dense(first), dense(second))
    assert torch.equal(dense(union), expected)
