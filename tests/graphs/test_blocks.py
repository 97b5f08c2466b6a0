"""What a graph block sends up, in and outside a training step, with and without feedback."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bpfree.graphs.blocks import FeedbackGraphBlock, GraphBlock
from bpfree.graphs.nodes import NodeQuery, Nodes, PairOutputs
from bpfree.graphs.states import NodeStates
from bpfree.losses import LocalCrossEntropy, PairScore
from bpfree.nn import GNN, learned_part
from tests.helpers import CLASSES, nodes

DATA = nodes()
STATES = NodeStates((DATA.features,), (DATA.graph,))


def make_block(kind: Any = "gcn", width: int = 12) -> GraphBlock:
    torch.manual_seed(0)
    net = GNN(kind, [CLASSES * 4])
    (conv,) = net.make_layers([width], net.hidden)
    front, body = learned_part(net, conv)
    block = GraphBlock(body, LocalCrossEntropy(nn.LazyLinear(CLASSES)), front)
    block.build(Nodes(STATES), CLASSES)
    block.optimizer = torch.optim.SGD(block.trainable(), lr=1.0)
    return block


@pytest.mark.parametrize("kind", ["gcn", "sage", "gat"])
def test_the_states_of_all_nodes_go_up_whatever_the_target_nodes_are(kind: Any) -> None:
    block, query = make_block(kind), NodeQuery(DATA.ids, repeated=True)
    everything = block(Nodes(STATES)).detach()
    some = Nodes(STATES, query)
    torch.testing.assert_close(block(some), everything[DATA.ids])
    for output in (None, block(some)):
        above = block.next_input(some, output)
        torch.testing.assert_close(above.states.states[0], everything)
        assert above.query is query
    given = torch.ones(60, 2)
    assert torch.equal(block.next_input(Nodes(STATES), given).states.states[0], given)


def test_what_goes_up_in_a_step_is_computed_with_the_weights_before_it() -> None:
    block = make_block()
    before = block(Nodes(STATES)).detach().clone()
    for query, target in (
        (NodeQuery(DATA.ids), DATA.y),
        (NodeQuery(), torch.full((60,), -100).index_put((DATA.ids,), DATA.y)),
    ):
        block = make_block()
        inputs = Nodes(STATES, query)
        _, output, above = block.train_step(inputs, target, None, front_done=False, send_up=True)
        assert isinstance(above, Nodes)
        assert torch.equal(above.states.states[0], before)
        expected = before if query.target_nodes is None else before[query.target_nodes]
        torch.testing.assert_close(output, expected)
        assert not torch.allclose(block(Nodes(STATES)), before)


def test_nothing_goes_up_where_no_block_is_above() -> None:
    inputs = Nodes(STATES, NodeQuery(DATA.ids))
    _, _, above = make_block().train_step(inputs, DATA.y, None, front_done=False, send_up=False)
    assert above is None


def test_readouts_of_pairs_get_the_outputs_of_all_nodes() -> None:
    block, pairs = make_block(), torch.tensor([[0, 1], [5, 7]])
    inputs = Nodes(STATES, NodeQuery(pairs=pairs))
    (output,) = block.outputs(inputs)
    assert isinstance(output, PairOutputs)
    assert output.pairs is pairs
    torch.testing.assert_close(output.output, block(Nodes(STATES)))
    torch.testing.assert_close(block.next_input(inputs, output).states.states[0], output.output)


def test_feedback_is_concatenated_to_the_states_and_is_zero_at_first() -> None:
    torch.manual_seed(0)
    net = GNN("gcn", [16])
    (conv,) = net.make_layers([12 + 3], net.hidden)
    front, body = learned_part(net, conv)
    block = FeedbackGraphBlock(body, PairScore(), front, feedback_width=3)
    feedback = torch.rand(60, 3, requires_grad=True)
    for given, columns in ((None, torch.zeros(60, 3)), (feedback, feedback)):
        inputs = block.concat_feedback(Nodes(STATES), given)
        rows = [part / (part.norm(dim=1, keepdim=True) + 1e-8) for part in (DATA.features, columns)]
        aggregate = DATA.graph.operator("gcn").dense() @ torch.cat(rows, 1)
        torch.testing.assert_close(block(inputs), (aggregate @ conv.lin.weight.T + conv.bias).relu())
        assert inputs.states.feedback is not None
        assert not inputs.states.feedback.requires_grad
    plain = GraphBlock(body, PairScore(), front)
    inputs = Nodes(STATES)
    assert plain.concat_feedback(inputs, feedback) is inputs
