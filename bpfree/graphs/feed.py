"""Training nodes for the lowest block that still learns, on the states of the whole graph."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bpfree._errors import BadValue
from bpfree._feature_store import Store
from bpfree._rows import Rows
from bpfree.core.cascade import Cascade
from bpfree.encodings.base import View
from bpfree.encodings.graph import GraphEncoding
from bpfree.engine.base_feed import BaseFeed
from bpfree.engine.feed import Data
from bpfree.graphs.nodes import Nodes


class GraphFeed(BaseFeed):
    """Feeds the block at ``height`` with nodes; those of a graph answer together or not at all.

    The states of all nodes below the fed block are made once and go with what its front made of them, so
    after that a step touches no edge: it takes the rows of its samples. Without a cache, the frozen blocks
    answer anew at every step.

    Args:
        cascade: The blocks and the encoding.
        data: The training samples.
        cache: Whether to keep states where they are constant.
        store: Where they are kept; by default in memory.

    Raises:
        BadValue: If they are to be in files, but are on a GPU.
    """

    def __init__(self, cascade: Cascade, data: Data, cache: bool, store: Store | None = None) -> None:
        assert isinstance(cascade.encoding, GraphEncoding)
        self.cascade, self.encoding, self.data, self.caches = cascade, cascade.encoding, data, cache
        self.store, self.height = store or Store(), 0
        self.device = device = data.y.device
        if self.store.folder is not None and device.type != "cpu":
            raise BadValue(
                f"cache_dir = {str(self.store.folder)!r}: the states of a graph on {self.device} stay there; "
                "leave cache_dir out, or train on the CPU"
            )
        self._kept: Nodes | None = None

    def freeze_below(self, height: int) -> None:
        """Freeze the blocks below ``height``; the states above them are made here if they can be kept."""
        if self.caches:
            self._kept = self.states() if height == self.height else self._raised(self.states(), height)
        self.height = height

    def states(self) -> Nodes:
        """The states of all nodes that the fed block sees."""
        if self._kept is not None:
            return self._kept
        return self._raised(self.encoding.nodes(None, keep=self.caches, store=self.store), self.height, 0)

    def _raised(self, nodes: Nodes, height: int, below: int | None = None) -> Nodes:
        for block in self.cascade.units[self.height if below is None else below : height]:
            raised = block.next_input(nodes)
            assert isinstance(raised, Nodes)
            nodes = raised
        return nodes

    def batches(self, n_samples: int, drop_last: bool = False) -> Iterator[Rows]:
        """The states below the first block, once: fronts on graphs have nothing to be calibrated."""
        yield self.encoding.nodes(None)

    def samples(self, indices: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Nodes ``[B]`` or pairs ``[B, 2]``, and labels ``[B]``, of a training step."""
        return self.data.batch(indices)

    def rows(
        self, indices: Tensor, epoch: int, step: int, scores: Tensor | None = None
    ) -> tuple[Rows, Tensor]:
        """The states that the fed block sees, the samples' nodes asked about, and the targets."""
        # A step on all samples is the same in any order.
        whole = len(indices) == len(self.data.y)
        x, y = (self.encoding.ids, self.encoding.y) if whole else self.data.batch(indices)
        with torch.no_grad():
            return self.encoding.select(self.states(), x, y)

    def outputs(self, x: Tensor, indices: Tensor, view: View) -> list[Tensor]:
        """Outputs of all blocks for the samples ``x`` in ``view``, without a graph."""
        with torch.no_grad():
            return self.cascade.outputs(self.encoding.view(x, view))

    def keep_outputs(self, view: View) -> None:
        """Nothing: readouts that learn have no outputs of graphs kept for them."""
