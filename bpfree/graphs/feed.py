"""Training batches of nodes for the lowest block that is not frozen."""

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
    """Training batches for the block at ``height``, with the states of all nodes below it.

    With a cache, these states are computed once per stage, and so is the output of the block's front: a step
    then reads the rows of its samples, and no edges. Without a cache, the frozen blocks are computed at every
    step.

    Args:
        cascade: The blocks and the encoding.
        data: The training samples.
        batch_size: Samples per training step.
        cache: Whether constant states are cached.
        store: Where they are stored; by default in memory.
        single_block: Whether each stage trains one block, so that no block above needs the states of all
            nodes. Then a full batch is the front's output.

    Raises:
        BadValue: If the store writes files, and the data are on a GPU.
    """

    def __init__(
        self,
        cascade: Cascade,
        data: Data,
        batch_size: int,
        cache: bool,
        store: Store | None = None,
        single_block: bool = False,
    ) -> None:
        assert isinstance(cascade.encoding, GraphEncoding)
        self.cascade, self.encoding, self.data, self.caches = cascade, cascade.encoding, data, cache
        self.store, self.device, self.batch_size = store or Store(), data.y.device, batch_size
        if self.store.folder is not None and self.device.type != "cpu":
            raise BadValue(
                f"cache_dir = {str(self.store.folder)!r}: the states of a graph on {self.device} stay there; "
                "leave cache_dir out, or train on the CPU"
            )
        self._cached: Nodes | None = None
        self.single_block = single_block
        self._full_batch: tuple[Rows, Tensor] | None = None

    @property
    def front_output(self) -> bool:
        """Whether `rows` returns the output of the fed block's front."""
        return self.single_block and self._full_batch is not None

    def freeze_below(self, height: int) -> None:
        """Freeze the blocks below ``height``, and cache what is constant above them."""
        if self.caches:
            states = self.states()
            for block in self.cascade.units[self.height : height]:
                states = block.next_input(states)  # type: ignore[assignment]
            self._cached, self._full_batch = states, None
        self.height = height
        units = self.cascade.units
        if self._cached is not None and self.batch_size >= len(self.data.y) and height < len(units):
            with torch.no_grad():
                query, target = self.encoding.training_query(self.encoding.ids, self.encoding.y)
                nodes = self._cached.with_query(query)
                # It is cached with the states, where the step needs these too.
                front_output = units[height].run_front(nodes)
            self._full_batch = (front_output if self.single_block else nodes, target)

    def states(self) -> Nodes:
        """The states of all nodes below the fed block."""
        if self._cached is not None:
            return self._cached
        nodes = self.encoding.nodes(None, cache=self.caches, store=self.store)
        for block in self.cascade.units[: self.height]:
            nodes = block.next_input(nodes)  # type: ignore[assignment]
        return nodes

    def batches(self, n_samples: int, drop_last: bool = False) -> Iterator[Rows]:
        """The states below the first block, once: fronts on graphs have no statistics to calibrate."""
        yield self.encoding.nodes(None)

    def samples(self, indices: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Nodes ``[B]`` or pairs ``[B, 2]``, and labels ``[B]``, of a training step."""
        return self.data.batch(indices)

    def rows(
        self, indices: Tensor, epoch: int, step: int, scores: Tensor | None = None
    ) -> tuple[Rows, Tensor]:
        """The states below the fed block with the query of a step, or the front's output, and the targets.

        A step on all samples has them in the same order every time.
        """
        all_samples = len(indices) == len(self.data.y)
        if all_samples and self._full_batch is not None:
            return self._full_batch
        x, y = (self.encoding.ids, self.encoding.y) if all_samples else self.data.batch(indices)
        with torch.no_grad():
            query, target = self.encoding.training_query(x, y)
            return self.states().with_query(query), target

    def outputs(self, x: Tensor, indices: Tensor, view: View) -> list[Tensor]:
        """Outputs of all blocks for the samples ``x`` in ``view``, without a graph."""
        with torch.no_grad():
            return self.cascade.outputs(self.encoding.view(x, view))

    def cache_outputs(self, view: View) -> None:
        """Does nothing: no outputs on graphs are cached for readouts that learn."""
