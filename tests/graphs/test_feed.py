"""What a graph feed hands to the block that learns, kept or made anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bpfree import ForwardGNN
from bpfree.graphs.feed import GraphFeed
from bpfree.graphs.nodes import Nodes
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
        feed.climb(height)
        rows, target = feed.rows(torch.arange(5), 0, 0)
        assert isinstance(rows, Nodes) and rows.wanted is not None
        for found, states in zip(rows.states, expected.states, strict=True):
            torch.testing.assert_close(found, states)
        assert torch.equal(rows.wanted[:5], data.ids[:5])
        assert len(target) == 5 * (1 if variant == "single_forward" else 3)
        again, _ = feed.rows(torch.arange(2), 1, 0)
        assert isinstance(again, Nodes)
        assert (again.states[0] is rows.states[0]) == (
            cache or (height == 0 and variant != "label_appending")
        )
        if block is not None:
            expected = block.next_input(expected)
