"""States, queries and caches of nodes, against dense matrices and counts of calls."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bpfree._feature_store import Store
from bpfree.graphs.cache import NodeCache
from bpfree.graphs.graph import Graph
from bpfree.graphs.matrices import linear
from bpfree.graphs.nodes import ALL_NODES, NodeQuery, Nodes
from bpfree.graphs.sparse import SparseMatrix
from bpfree.graphs.states import NodeStates
from tests.helpers import nodes

DATA = nodes()
STATES = NodeStates((DATA.features,), (DATA.graph,))
OTHER_GRAPH = DATA.graph.with_edges(torch.tensor([[0], [1]]), 60)


def counted(calls: list[int]) -> Callable[[Tensor, Graph], Tensor]:
    def aggregate(states: Tensor, graph: Graph) -> Tensor:
        calls.append(1)
        return graph.operator("gcn") @ states

    return aggregate


def identity(states: Tensor, _: Graph) -> Tensor:
    return states


# ---- cache -------------------------------------------------------------------------------------------------


def test_a_result_is_found_by_its_key_and_the_identity_of_its_node_numbers() -> None:
    cache, numbers = NodeCache(), torch.arange(3)
    cache.put("key", 1, numbers)
    cache.put("key", 2)
    assert cache.get("key", numbers) == 1
    assert cache.get("key") == 2
    assert cache.get("key", numbers.clone()) is None
    assert cache.get("other key", numbers) is None


def test_a_cache_holds_its_node_numbers_so_that_no_other_tensor_gets_their_address() -> None:
    cache = NodeCache()
    for number in range(50):
        cache.put("key", number, torch.arange(3))
    assert all(cache.get("key", torch.arange(3)) is None for _ in range(50))


def test_a_disabled_cache_stores_nothing_and_caches_of_other_states_share_the_store(tmp_path: object) -> None:
    store = Store(str(tmp_path))
    cache = NodeCache(store)
    disabled = cache.disabled()
    for empty in (disabled, disabled.for_other_states()):
        empty.put("key", 1)
        assert empty.get("key") is None
    cache.put("key", 1)
    other = cache.for_other_states()
    assert other.get("key") is None
    other.put("key", 2)
    assert (cache.get("key"), other.get("key")) == (1, 2)
    assert cache.store is disabled.store is other.store is store


# ---- states ------------------------------------------------------------------------------------------------


def test_one_entry_holds_for_all_variants() -> None:
    codes, codebook = (torch.eye(2).repeat(30, 1), torch.ones(60, 2)), torch.rand(2, 12)
    states = NodeStates((DATA.features,), (DATA.graph,), codes=codes, codebook=codebook)
    assert (states.n_variants, states.n_nodes) == (2, 60)
    for variant in range(2):
        assert states.graph(variant) is DATA.graph
        expected = DATA.features + codes[variant] @ codebook
        assert torch.equal(states.dense(variant), expected)
        torch.testing.assert_close(states.lengths()[variant], expected.norm(dim=1, keepdim=True))


def test_equal_lengths_are_one_tensor() -> None:
    mirrored = NodeStates((DATA.features, -DATA.features, 2 * DATA.features), (DATA.graph,))
    first, second, third = mirrored.lengths()
    assert first is second
    assert first is not third


def test_each_variant_goes_to_the_next_layer_or_the_first_for_all() -> None:
    output = torch.arange(120.0).view(120, 1).requires_grad_()
    states = NodeStates((DATA.features,), (DATA.graph, OTHER_GRAPH), sparse=True)
    above = states.next_layer(output)
    assert [state[0].item() for state in above.states] == [0.0, 60.0]
    assert not any(state.requires_grad for state in above.states)
    assert not above.sparse
    states = replace(states, pass_first_variant=True)
    assert states.first_variant().n_variants == 1
    for computed in (output, output[:60]):
        above = states.next_layer(computed)
        assert [state[0].item() for state in above.states] == [0.0]
    assert (above.n_variants, len(above.states), above.pass_first_variant) == (2, 1, True)


def test_feedback_and_codes_do_not_go_to_the_next_layer() -> None:
    states = replace(STATES, codes=(torch.ones(60, 1),), codebook=torch.ones(1, 12))
    above = replace(states, feedback=torch.ones(60, 3)).next_layer(torch.ones(60, 4))
    assert above.feedback is None
    assert above.codebook is None
    assert torch.equal(above.dense(0), torch.ones(60, 4))


# ---- queries and computed results --------------------------------------------------------------------------


def test_an_aggregate_is_computed_once_for_the_same_states_and_graph() -> None:
    calls: list[int] = []
    aggregate = counted(calls)
    inputs = Nodes(STATES)
    numbers = torch.tensor([5, 2, 9])
    first = inputs.with_query(NodeQuery(numbers)).compute("front", aggregate)
    again = inputs.with_query(NodeQuery(torch.tensor([1]))).compute("front", aggregate)
    assert len(calls) == 1
    assert isinstance(first, Tensor)
    assert isinstance(again, Tensor)
    torch.testing.assert_close(first, (DATA.graph.operator("gcn").dense() @ DATA.features)[numbers])
    inputs.compute("another front", aggregate)
    assert len(calls) == 2
    inputs.next_layer(DATA.features * 2).compute("front", aggregate)
    Nodes(NodeStates((DATA.features,), (OTHER_GRAPH,))).compute("front", aggregate)
    assert len(calls) == 4


def test_the_result_of_a_repeated_query_is_the_same_object_and_sparse_if_it_can_be() -> None:
    features = torch.eye(60)
    states = NodeStates((features,), (DATA.graph,), sparse=True)
    query = NodeQuery(torch.arange(20), repeated=True)
    inputs = Nodes(states, query)
    result = inputs.compute("front", identity)
    assert isinstance(result, SparseMatrix)
    assert torch.equal(result.dense(), features[:20])
    assert inputs.compute("front", identity) is result
    uncached = Nodes(states, query, NodeCache(enabled=False))
    assert uncached.compute("front", identity) is not uncached.compute("front", identity)


def test_a_repeated_query_is_answered_for_its_own_nodes() -> None:
    inputs, expected = Nodes(STATES), DATA.graph.operator("gcn").dense() @ DATA.features
    queries = [NodeQuery(torch.tensor(numbers), repeated=True) for numbers in ([3, 1], [4, 4, 2])]
    for query in queries * 2:
        result = inputs.with_query(query).compute("front", counted([]))
        assert isinstance(result, Tensor)
        torch.testing.assert_close(result, expected[query.target_nodes])
        rows = inputs.with_query(query).operator("gcn")
        assert torch.equal(rows.dense(), DATA.graph.operator("gcn").dense()[query.target_nodes])


def test_the_next_layer_needs_all_nodes_and_keeps_the_query() -> None:
    query = NodeQuery(torch.arange(3), repeated=True)
    inputs = Nodes(STATES, query)
    assert inputs.for_next_layer().query is ALL_NODES
    assert inputs.for_next_layer().cache is inputs.cache
    above = inputs.next_layer(torch.ones(60, 4))
    assert above.query is query
    assert above.cache is not inputs.cache
    several = replace(STATES, graphs=(DATA.graph, OTHER_GRAPH), pass_first_variant=True)
    first = Nodes(several, query).for_next_layer()
    assert (first.states.n_variants, first.cache.enabled) == (1, False)


def test_feedback_is_aggregated_as_further_columns() -> None:
    feedback, weight = torch.rand(60, 3), torch.rand(5, 15)
    for query in (ALL_NODES, NodeQuery(torch.tensor([7, 0, 31]), repeated=True)):
        result = Nodes(replace(STATES, feedback=feedback), query).compute("front", counted([]), True)
        rows = [part / (part.norm(dim=1, keepdim=True) + 1e-8) for part in (DATA.features, feedback)]
        expected = DATA.graph.operator("gcn").dense() @ torch.cat(rows, 1)
        expected = expected if query.target_nodes is None else expected[query.target_nodes]
        torch.testing.assert_close(linear(result, weight), expected @ weight.T)


def test_edges_of_target_nodes_are_all_that_point_to_them_and_their_self_loops() -> None:
    adjacency = torch.zeros(60, 60)
    adjacency[DATA.graph.edge_index[1], DATA.graph.edge_index[0]] = 1.0
    states = NodeStates((DATA.features,), (DATA.graph, DATA.graph))
    edges = Nodes(states, NodeQuery(torch.tensor([3, 40]))).edges()
    source, target = edges.source, edges.target
    assert (edges.row_sources.tolist(), edges.n_sources) == ([3, 40, 63, 100], 120)
    for row, (node, variant) in enumerate([(3, 0), (40, 0), (3, 1), (40, 1)]):
        expected = set(adjacency[node].nonzero().squeeze(1).tolist()) | {node}
        assert set((source[target == row] - 60 * variant).tolist()) == expected


def test_a_copy_of_an_input_is_the_input() -> None:
    inputs = Nodes(STATES)
    assert copy.deepcopy(inputs) is inputs
    assert copy.deepcopy(inputs.states) is inputs.states
    assert copy.deepcopy(inputs.cache) is inputs.cache


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_states_with_codes_are_aggregated_as_their_sum(normalize: bool, shared: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    base = DATA.features * (torch.rand(60, 12, generator=generator) < 0.05)
    codebook = torch.rand(2, 12, generator=generator)
    codes = [torch.eye(2).repeat(30, 1), torch.eye(2).flip(0).repeat(30, 1)]
    other = DATA.graph.with_edges(torch.tensor([[0, 3], [1, 2]]), 60)
    graphs = (DATA.graph,) if shared else (DATA.graph, other)
    coded = Nodes(NodeStates((base,), graphs, codes=tuple(codes), codebook=codebook))
    summed = Nodes(NodeStates(tuple(base + code @ codebook for code in codes), graphs))
    weight = torch.rand(5, 12, generator=generator)
    for numbers, repeated in ((None, True), (torch.tensor([2, 40, 7]), True), (torch.tensor([5, 1]), False)):
        result, expected = (
            linear(
                inputs.with_query(NodeQuery(numbers, repeated=repeated)).compute(
                    "front", counted([]), normalize
                ),
                weight,
            )
            for inputs in (coded, summed)
        )
        torch.testing.assert_close(result, expected)
