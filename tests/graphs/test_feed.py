"""The training batches of a graph feed, cached and computed at every step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bpfree import ForwardGNN
from bpfree._feature_store import Store
from bpfree.engine.settings import FitSettings
from bpfree.graphs.feed import GraphFeed
from bpfree.graphs.nodes import NodeQuery, Nodes
from bpfree.graphs.sparse import SparseMatrix
from tests.helpers import make_gnn, nodes


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("variant", ["single_forward", "label_appending", "virtual_nodes"])
def test_the_states_are_those_of_the_blocks_below(cache: bool, variant: Any) -> None:
    data = nodes()
    trainer = ForwardGNN(make_gnn(hidden=(16, 8, 16)), progress=False, variant=variant)
    trainer.build_for(data)  # type: ignore[arg-type]
    feed = GraphFeed(trainer.cascade, data, 5, cache)
    expected: Any = trainer.cascade.encoding.nodes(None)  # type: ignore[attr-defined]
    for height, block in enumerate([*trainer.cascade.units, None]):
        feed.freeze_below(height)
        rows, target = feed.rows(torch.arange(5), 0, 0)
        assert isinstance(rows, Nodes)
        assert rows.query.target_nodes is not None
        for found, states in zip(rows.states.states, expected.states.states, strict=True):
            torch.testing.assert_close(found, states)
        assert torch.equal(rows.query.target_nodes[:5], data.ids[:5])
        assert len(target) == 5 * (1 if variant == "single_forward" else 3)
        again, _ = feed.rows(torch.arange(2), 1, 0)
        assert isinstance(again, Nodes)
        assert (again.states.states[0] is rows.states.states[0]) == (
            cache or (height == 0 and variant != "label_appending")
        )
        if block is not None:
            expected = block.next_input(expected)


@pytest.mark.parametrize("single_block", [True, False])
@pytest.mark.parametrize("variant", ["single_forward", "virtual_nodes"])
def test_full_batches_are_one_object_whose_front_output_is_computed_when_the_stage_begins(
    variant: Any, single_block: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = nodes()
    trainer = ForwardGNN(make_gnn(), progress=False, variant=variant)
    trainer.build_for(data)  # type: ignore[arg-type]
    products, multiply = list[int](), SparseMatrix.__matmul__

    def count(self: SparseMatrix, x: torch.Tensor) -> torch.Tensor:
        products.append(1)
        return multiply(self, x)

    monkeypatch.setattr(SparseMatrix, "__matmul__", count)
    feed = GraphFeed(trainer.cascade, data, len(data), True, Store(), single_block)
    assert trainer.make_feed(data, FitSettings(batch_size=len(data)), Store()).single_block
    order = torch.randperm(len(data))
    for height, block in enumerate(trainer.cascade.units):
        feed.freeze_below(height)
        computed = len(products)
        first, target = feed.rows(order, 0, 0)
        again, again_target = feed.rows(order.flip(0), 1, 0)
        assert (first is again, target is again_target) == (True, True)
        assert feed.front_output == single_block
        output = block.body(first) if feed.front_output else block(first)
        assert len(products) == computed
        query, expected_target = feed.encoding.training_query(data.ids, data.y)
        assert torch.equal(target, expected_target)
        expected = block(feed.states().with_query(NodeQuery(query.target_nodes)))
        torch.testing.assert_close(output, expected)
    feed.freeze_below(len(trainer.cascade.units))
    assert not feed.front_output
    top, _ = feed.rows(order, 0, 0)
    assert isinstance(top, Nodes)
    assert top.states is feed.states().states
